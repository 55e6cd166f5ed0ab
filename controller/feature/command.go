package feature

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// A Command is what is to be run in a container.
type Command struct {
	Argv  []string
	Env   []string // KEY=VALUE
	Stdin []byte
}

// The whole script is taken in before any of it is run, so that a connection that breaks never leaves half a line to
// be run, and what the script starts cannot read the rest of it. The last line shows that it came whole.
const runner = `script=$(cat) || exit 125
case $script in
*"# phoenix:end $1") ;;
*) echo "the script came incomplete; nothing of it was run" >&2; exit 125 ;;
esac
shift
exec </dev/null
eval "$script"`

// Command returns how the script is run. It sees PHOENIX_CTID, PHOENIX_FEATURE and PHOENIX_GPUS ("0,1", empty for
// none); its standard input is empty. It may be run again at any time, and succeeds by ending with status 0.
func (s *Script) Command(ctid int32, gpus []int) Command {
	var indexes []string
	for _, gpu := range gpus {
		indexes = append(indexes, strconv.Itoa(gpu))
	}
	return Command{
		Argv: slices.Concat(s.Shell, []string{"-c", runner, s.Feature + ".sh", s.SHA256}),
		Env: []string{
			"PHOENIX_CTID=" + strconv.Itoa(int(ctid)),
			"PHOENIX_FEATURE=" + s.Feature,
			"PHOENIX_GPUS=" + strings.Join(indexes, ","),
		},
		Stdin: slices.Concat(s.Content, []byte("\n# phoenix:end "+s.SHA256+"\n")),
	}
}

// check refuses what no shell takes as it is meant, and returns the shell.
func check(content []byte) ([]string, error) {
	switch {
	case bytes.IndexByte(content, 0) >= 0:
		return nil, errors.New("it holds a NUL")
	case bytes.Contains(content, []byte("\r\n")):
		return nil, errors.New("its lines end with CR LF; save it with LF alone")
	}
	return shellOf(content)
}

// shellOf returns the interpreter that the first line of a script asks for: a shell, since it is given a command with
// -c; sh if there is no such line.
func shellOf(content []byte) ([]string, error) {
	line, _, _ := strings.Cut(string(content[:min(len(content), 256)]), "\n")
	asked, ok := strings.CutPrefix(line, "#!")
	if !ok {
		return []string{"sh"}, nil
	}
	argv := strings.Fields(asked)
	if len(argv) > 1 && path.Base(argv[0]) == "env" {
		argv = argv[1:]
	}
	if len(argv) == 0 || !slices.Contains([]string{"sh", "ash", "bash", "dash"}, path.Base(argv[0])) {
		return nil, fmt.Errorf("its first line asks for %q; a feature script is one for sh or bash", strings.TrimSpace(asked))
	}
	return argv, nil
}

// markers is where a container keeps, by feature, the SHA-256 of the script that last succeeded in it. It is in the
// container, so that a clone or a rollback of its file system tells the truth.
const markers = "/var/lib/phoenix/features/"

// ReadMarker returns the command that prints the marker of a feature, or nothing if there is none. Its status is 0 in
// both cases.
func ReadMarker(feature string) Command {
	const script = `if [ -f "$1" ]; then head -c 128 "$1"; fi`
	return Command{Argv: []string{"sh", "-c", script, "sh", markers + feature}}
}

// WriteMarker returns the command that records that the script with this SHA-256 has succeeded.
func WriteMarker(feature, sha256 string) Command {
	const script = `umask 022
mkdir -p "${1%/*}" && printf '%s\n' "$2" >"$3" && mv -f "$3" "$1"`
	return Command{Argv: []string{"sh", "-c", script, "sh", markers + feature, sha256, markers + "." + feature}}
}

// Holds tells whether what [ReadMarker] printed says that the script with this SHA-256 has succeeded.
func Holds(marker []byte, sha256 string) bool {
	return sha256 != "" && strings.TrimSpace(string(marker)) == sha256
}

// HealthCheck returns how a declared health check is run: it succeeds by ending with status 0.
func HealthCheck(command string) Command {
	return Command{Argv: []string{"sh", "-c", command}}
}
