package confstore

import (
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Managed tells whether Proxmox's HA stack manages a container: pct then only passes requests on to it. Managed means an
// entry in ha/resources.cfg whose state is not ignored.
func (s *Store) Managed(ctid int32) (bool, error) {
	return answer(s, nil, func(*job) (bool, error) {
		f, err := open(filepath.Join(s.pve(), "ha", "resources.cfg"), unix.O_RDONLY, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, readError(err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, MaxSize))
		if err != nil {
			return false, readError(err)
		}
		return managed(string(b), ctid), nil
	})
}

// managed reads sections of the form "ct: 901", each followed by indented lines such as "state started".
func managed(resources string, ctid int32) bool {
	found, ignored := false, false
	inside := false
	for line := range strings.Lines(resources) {
		fields := strings.Fields(line)
		switch {
		case len(fields) == 0 || strings.HasPrefix(fields[0], "#"):
		case line[0] != ' ' && line[0] != '\t':
			inside = len(fields) == 2 && fields[0] == "ct:" && fields[1] == strconv.Itoa(int(ctid))
			found = found || inside
		case inside && len(fields) == 2 && fields[0] == "state":
			ignored = fields[1] == "ignored"
		}
	}
	return found && !ignored
}
