package attach

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
)

// maxLog bounds what is read of a log: a container may write to it while lxc-attach enters it.
const maxLog = 64 << 10

// maxText bounds the text made of it, in bytes.
const maxText = 1000

// newLog returns a file for lxc-attach's log that is in no file system.
func newLog() (*os.File, error) {
	fd, err := unix.MemfdCreate("lxc-attach.log", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), "lxc-attach.log"), nil
}

// failure returns why lxc-attach could not run the command, "" if it could.
//
// At level NOTICE lxc-attach's last line before it executes the command is the NOTICE "Switched to
// uid 0" (attach.c, do_attach); a failure to enter the container makes the last line an ERROR. One
// that stands further up was survived. (Seen with LXC 5.0.2: testdata/log.)
func failure(log *os.File) string {
	b, err := io.ReadAll(io.NewSectionReader(log, 0, maxLog))
	if err != nil {
		return ""
	}
	return parseLog(b)
}

func parseLog(b []byte) string {
	var failures []string
	for line := range strings.Lines(string(b)) {
		// lxc-attach 901 20261123155010.616 ERROR    attach - ../src/lxc/attach.c:lxc_attach:1470 - TEXT
		fields := strings.Fields(line)
		if len(fields) < 4 || fields[3] != "ERROR" {
			failures = nil
			continue
		}
		_, text, _ := strings.Cut(line, " - ")
		if _, after, found := strings.Cut(text, " - "); found {
			text = after
		}
		failures = append(failures, strings.TrimSpace(text))
	}
	text := printable(strings.Join(failures, "; "))
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "")
	}
	return text
}

// printable replaces what a terminal could take for more than a character.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}
