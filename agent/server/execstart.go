package server

import (
	"fmt"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	"phoenix.internal/agent/attach"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// commandOf checks a start and makes a command of it, which has no streams yet.
func commandOf(start *typev1.ExecStart) (attach.Command, error) {
	for _, check := range []func(*typev1.ExecStart) error{
		func(s *typev1.ExecStart) error { return checkCTID(s.GetCtid()) },
		checkArgv, checkEnv, checkSurroundings,
	} {
		if err := check(start); err != nil {
			return attach.Command{}, err
		}
	}
	timeout, err := limitOf("timeout", start.GetTimeout(), defaultExecTimeout)
	if err != nil {
		return attach.Command{}, err
	}
	idle, err := limitOf("idle_timeout", start.GetIdleTimeout(), 0)
	if err != nil {
		return attach.Command{}, err
	}
	return attach.Command{
		CTID: start.GetCtid(), Argv: start.GetArgv(), Env: start.GetEnv(),
		User: start.GetUser(), Dir: start.GetWorkingDirectory(), Timeout: timeout, Idle: idle,
		TTY: start.GetTty(), Columns: int(start.GetSize().GetColumns()), Rows: int(start.GetSize().GetRows()),
	}, nil
}

func checkArgv(start *typev1.ExecStart) error {
	if n := len(start.GetArgv()); n == 0 || n > maxArgs {
		return invalid("argv", "%d words given; 1 to %d are allowed", n, maxArgs)
	}
	if start.GetArgv()[0] == "" {
		return invalid("argv[0]", "the program's name is empty")
	}
	size := 0
	for i, arg := range start.GetArgv() {
		if strings.ContainsRune(arg, 0) {
			return invalid(fmt.Sprintf("argv[%d]", i), "NUL cannot be passed to a program")
		}
		size += len(arg) + 1
	}
	if size > maxArgBytes {
		return invalid("argv", "%d bytes in all; at most %d are allowed", size, maxArgBytes)
	}
	return nil
}

var envPattern = regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]{0,127}=`)

func checkEnv(start *typev1.ExecStart) error {
	if n := len(start.GetEnv()); n > maxEnv {
		return invalid("env", "%d variables given; at most %d are allowed", n, maxEnv)
	}
	size := 0
	for i, v := range start.GetEnv() {
		if !envPattern.MatchString(v) || !utf8.ValidString(v) || strings.ContainsFunc(v, isControl) {
			return invalid(fmt.Sprintf("env[%d]", i), "%.80q is not NAME=VALUE without control characters", v)
		}
		size += len(v) + 1
	}
	if size > maxEnvBytes {
		return invalid("env", "%d bytes in all; at most %d are allowed", size, maxEnvBytes)
	}
	return nil
}

// userPattern leaves out what parts the fields and members of /etc/passwd and /etc/group, and paths.
var userPattern = regexp.MustCompile(`\A[^\x00-\x20\x7f,/:]+(?::[^\x00-\x20\x7f,/:]+)?\z`)

// checkSurroundings checks where and as whom the command is to run.
func checkSurroundings(start *typev1.ExecStart) error {
	if u := start.GetUser(); u != "" && (len(u) > maxUserBytes || !userPattern.MatchString(u)) {
		return invalid("user", "%.80q is not NAME, UID, NAME:GROUP or UID:GID of at most %d bytes", u, maxUserBytes)
	}
	if d := start.GetWorkingDirectory(); d != "" && (d[0] != '/' || len(d) > maxPathBytes || strings.ContainsRune(d, 0)) {
		return invalid("working_directory", "%.80q is not an absolute path of at most %d bytes", d, maxPathBytes)
	}
	if n := len(start.GetInstance()); n > maxInstanceBytes {
		return invalid("instance", "%d bytes; at most %d are allowed", n, maxInstanceBytes)
	}
	if start.GetSize() != nil {
		return checkSize("size", start.GetSize())
	}
	return nil
}

func isControl(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }

func checkSize(field string, size *typev1.TerminalSize) error {
	const most = 4096
	if c := size.GetColumns(); c < 1 || c > most {
		return invalid(field+".columns", "%d is not between 1 and %d", c, most)
	}
	if r := size.GetRows(); r < 1 || r > most {
		return invalid(field+".rows", "%d is not between 1 and %d", r, most)
	}
	return nil
}

// limitOf returns a time limit of a command; absent if there is none.
func limitOf(field string, d *durationpb.Duration, absent time.Duration) (time.Duration, error) {
	if d == nil {
		return absent, nil
	}
	if err := d.CheckValid(); err != nil {
		return 0, invalid(field, "%v", err)
	}
	if t := d.AsDuration(); t > 0 && t <= maxExecTimeout {
		return t, nil
	}
	return 0, invalid(field, "%v is not between 0 s and %v", d.AsDuration(), maxExecTimeout)
}
