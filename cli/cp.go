package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"phoenix.internal/cli/output"
	"phoenix.internal/cli/terminal"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

type cpOptions struct {
	preserve bool
	owner    *typev1.FileOwner
}

func (p *Program) cpCommand() *cobra.Command {
	var o cpOptions
	var owner string
	var places []place
	cmd := &cobra.Command{
		Use:   "cp [-p] SOURCE... TARGET",
		Short: "Copy files into or out of a container",
		Long: `Copy regular files into a running container, or out of one: CTID:/PATH is a file in a container, everything else one
here, and - is stdin or stdout. A target that is a directory gets the file under its own name.

What is copied is compared by SHA-256, and takes the target's place only when it is whole. A copy that was broken off
goes on where it ended when the same command is given again. The file gets the permissions of the source.

For a directory, or to keep what cp does not, pack it: tar c -C DIR . | phoenix-cli exec -i CTID tar x -C DIR`,
		Example: "  phoenix-cli cp model.bin 901:/srv/\n  phoenix-cli cp 901:/var/log/syslog .\n  phoenix-cli cp 901:/etc/hosts - | less",
		Args: func(cmd *cobra.Command, args []string) (err error) {
			places, err = parsePlaces(args)
			return misuseIf(cmd, err)
		},
		PreRunE: func(cmd *cobra.Command, _ []string) (err error) {
			o.owner, err = parseOwner(owner, places)
			return misuseIf(cmd, err)
		},
		RunE: p.connected(func(ctx context.Context, s *session, _ []string) error {
			return copyFiles(ctx, s, o, places[:len(places)-1], places[len(places)-1])
		}),
	}
	cmd.Flags().BoolVarP(&o.preserve, "preserve", "p", false, "keep the time of the last change too")
	cmd.Flags().StringVar(&owner, "owner", "", "owner and group in the container, as numbers `UID:GID` (default: of the file that is replaced, or root)")
	return cmd
}

// A place is where a file comes from or goes to.
type place struct {
	ctid int32 // 0: here
	path string
}

func (p place) String() string {
	if p.ctid == 0 {
		return p.path
	}
	return fmt.Sprintf("%d:%s", p.ctid, p.path)
}

// standard says whether the place is stdin or stdout.
func (p place) standard() bool { return p.ctid == 0 && p.path == "-" }

var inContainer = regexp.MustCompile(`^([0-9]+):(.*)$`)

func parsePlaces(args []string) ([]place, error) {
	if len(args) < 2 {
		return nil, errors.New("cp: SOURCE and TARGET are needed; one of them is CTID:/PATH")
	}
	var places []place
	stdin := 0
	for _, arg := range args {
		p := place{path: arg}
		if m := inContainer.FindStringSubmatch(arg); m != nil {
			ctid, err := parseCTID(m[1])
			if err != nil {
				return nil, fmt.Errorf("%w; a file here of that name is ./%s", err, arg)
			}
			if !strings.HasPrefix(m[2], "/") {
				return nil, fmt.Errorf("%s: %q is not an absolute path in the container", arg, m[2])
			}
			p = place{ctid, m[2]}
		}
		switch {
		case arg == "":
			return nil, errors.New("cp: the name of a file is empty")
		case !utf8.ValidString(arg):
			return nil, fmt.Errorf("%q: the name is not UTF-8", arg)
		case arg == "-":
			stdin++
		}
		places = append(places, p)
	}
	sources, target := places[:len(places)-1], places[len(places)-1]
	for _, source := range sources {
		switch {
		case source.ctid != 0 && target.ctid != 0:
			return nil, fmt.Errorf("cp: one of %s and %s must be here; for a copy between containers: phoenix-cli cp %[1]s - | phoenix-cli cp - %[2]s", source, target)
		case source.ctid == 0 && target.ctid == 0:
			return nil, fmt.Errorf("cp: neither %s nor %s is in a container; a file in one is CTID:/PATH", source, target)
		}
	}
	if len(sources) > 1 && (stdin > 0) {
		return nil, errors.New("cp: - is a single file: it goes with one SOURCE and one TARGET")
	}
	return places, nil
}

func parseOwner(s string, places []place) (*typev1.FileOwner, error) {
	if s == "" {
		return nil, nil
	}
	uid, gid, found := strings.Cut(s, ":")
	u, uidErr := strconv.ParseUint(uid, 10, 32)
	g, gidErr := strconv.ParseUint(gid, 10, 32)
	switch {
	case !found || uidErr != nil || gidErr != nil:
		return nil, fmt.Errorf("--owner %q is not UID:GID, two numbers", s)
	case places[len(places)-1].ctid == 0:
		return nil, errors.New("--owner is for files that go into a container")
	}
	return &typev1.FileOwner{Uid: int64(u), Gid: int64(g)}, nil
}

// copyFiles copies each source; one that fails does not keep the others.
func copyFiles(ctx context.Context, s *session, o cpOptions, sources []place, target place) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var errs []error
	for _, source := range sources {
		c := &copying{s: s, o: o, files: controllerv1.NewFileServiceClient(s.conn), source: source, target: target, several: len(sources) > 1}
		copyOne := c.push
		if target.ctid == 0 {
			copyOne = c.pull
		}
		begin := s.now()
		c.shown = begin.Add(progressAfter - progressEvery)
		done, err := copyOne(ctx)
		c.clearProgress()
		if err != nil {
			errs = append(errs, c.explain(err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if done.ResumedBytes > 0 {
			s.warn("cp %s to %s: it went on after the %d bytes that were there already", source, done.Target, done.ResumedBytes)
		}
		if s.json && !target.standard() { // stdout has the file
			if err := json.NewEncoder(s.out).Encode(done); err != nil {
				return err
			}
		}
	}
	return errors.Join(errs...)
}

// A copied is what became of one file. It is what --json shows.
type copied struct {
	Source       string `json:"source"`
	Target       string `json:"target"`
	Bytes        int64  `json:"bytes"`
	ResumedBytes int64  `json:"resumed_bytes"`
	SHA256       string `json:"sha256"`
}

// A copying is one file on its way.
type copying struct {
	s              *session
	o              cpOptions
	files          controllerv1.FileServiceClient
	source, target place
	several        bool  // the target must be a directory
	kept           bool  // what has arrived is kept if the copy is broken off
	at, size       int64 // how much has arrived, and of how much; -1: not known
	shown          time.Time
	onScreen       bool
}

// explain says what was tried, and what is left of it.
func (c *copying) explain(err error) error {
	if st, ok := statusOf(err); ok && c.kept && c.at > 0 && (st.Code() == codes.Unavailable || st.Code() == codes.Canceled) {
		defer c.s.warn("cp %s to %s: what has arrived is kept; the same command goes on from there", c.source, c.target)
	}
	return fmt.Errorf("cp %s to %s: %w", c.source, c.target, err)
}

// How soon and how often the progress is shown on a terminal.
const (
	progressAfter = time.Second
	progressEvery = 200 * time.Millisecond
)

// moved counts bytes, and shows the progress on a terminal.
func (c *copying) moved(n int) {
	c.at += int64(n)
	now := c.s.now()
	if now.Sub(c.shown) < progressEvery || !terminal.Is(c.s.err) {
		return
	}
	c.shown, c.onScreen = now, true
	text := fmt.Sprintf("%s: %d MiB", path.Base(c.source.path), c.at>>20)
	if c.size > 0 {
		text += fmt.Sprintf(" of %d MiB, %d %%", c.size>>20, c.at*100/max(c.size, c.at))
	}
	fmt.Fprintf(c.s.err, "\r\x1b[K%s", output.Clean(text))
}

func (c *copying) clearProgress() {
	if c.onScreen {
		fmt.Fprint(c.s.err, "\r\x1b[K")
	}
}

// sameContent compares what two sides have computed of one file.
func sameContent(end *typev1.FileEnd, size int64, sum []byte) error {
	if end.GetSize() != size || !bytes.Equal(end.GetSha256(), sum) {
		return fmt.Errorf("what arrived is not what was sent: %d bytes with SHA-256 %x instead of %d with %x", size, sum, end.GetSize(), end.GetSha256())
	}
	return nil
}

// directoryFailure refuses a directory of this machine.
func directoryFailure(c *copying, name string) error {
	return &failure{
		err:  fmt.Errorf("%s is a directory; only regular files are copied", name),
		hint: fmt.Sprintf("Pack it: tar c -C %s . | phoenix-cli exec -i %d tar x -C DIRECTORY", name, c.target.ctid),
	}
}

// A stream of unknown length has no size.
const unknownSize = -1

// openSource opens what is to be pushed: size is unknownSize for what can be read only once.
func (c *copying) openSource() (r io.Reader, info os.FileInfo, size int64, err error) {
	if c.source.standard() {
		return c.s.in, nil, unknownSize, nil
	}
	// Before it is opened: opening something else than a file could do anything.
	info, err = os.Stat(c.source.path)
	if err != nil {
		return nil, nil, 0, err
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
		size = info.Size()
	case mode.IsDir():
		return nil, nil, 0, directoryFailure(c, c.source.path)
	case mode&os.ModeNamedPipe != 0:
		size = unknownSize
	default:
		return nil, nil, 0, fmt.Errorf("%s is no regular file", c.source.path)
	}
	f, err := os.Open(c.source.path)
	return f, info, size, err
}
