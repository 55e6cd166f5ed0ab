package sandbox

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Status writes what there is, for people.
func (s *Sandbox) Status(out io.Writer) error {
	for _, n := range s.Nodes {
		state := "up"
		if _, err := s.holder(n.Name); err != nil {
			state = "DEAD"
		}
		confs, err := filepath.Glob(s.ConfPath(n.Name, 0)[:len(s.ConfPath(n.Name, 0))-len("0.conf")] + "*.conf")
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s  %s  %s  %d GPUs (majors nvidia %d, nvidia-uvm %d)  %d containers:", n.Name, state, n.Address,
			len(n.GPUs), n.Majors.NVIDIA, n.Majors.UVM, len(confs))
		for _, conf := range confs {
			fmt.Fprint(out, " ", strings.TrimSuffix(filepath.Base(conf), ".conf"))
		}
		fmt.Fprintln(out)
	}
	self := filepath.Base(os.Args[0])
	_, err := fmt.Fprintf(out, "look around in one: %s --dir %s enter %s\n", self, s.Dir, s.Nodes[0].Name)
	return err
}
