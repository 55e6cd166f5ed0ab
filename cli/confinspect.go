package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"phoenix.internal/agent/passthrough"
	"phoenix.internal/agent/pveconf"
	"phoenix.internal/cli/output"
)

// maxConf is the largest file that Proxmox's file system takes, in MiB.
const maxConf = 1

type confInspectOptions struct {
	proxmox bool
	diff    bool
}

func (p *Program) confInspectCommand() *cobra.Command {
	var o confInspectOptions
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a conf file means, without a controller",
		Long: `Show what a file ("-" for stdin) means as the conf of a container: what Proxmox reads, which NVIDIA devices it
gives, what its next rewrite by Proxmox changes, and everything that conf audit finds. Nobody is asked: it needs no
controller, no agent and no settings.

With --proxmox only what Proxmox's own parser holds in memory is shown, as JSON. With --diff only the change that
Proxmox's next rewrite makes.

Exit status: 1 also if Proxmox's parser dies on the file with --proxmox, or its writer with --diff.`,
		Args: exactly("FILE"),
		RunE: p.alone(func(ctx context.Context, s *session, args []string) error {
			name, conf, err := s.readConf(ctx, args[0])
			if err != nil {
				return err
			}
			return confInspect(s, name, pveconf.Parse(conf), o)
		}),
	}
	cmd.Flags().BoolVar(&o.proxmox, "proxmox", false, "what Proxmox's parser makes of it, as JSON")
	cmd.Flags().BoolVar(&o.diff, "diff", false, "what Proxmox's next rewrite changes")
	excludeEachOther(cmd, "proxmox", "diff")
	excludeEachOther(cmd, "diff", "json")
	return cmd
}

func (p *Program) confCanonicalCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "canonical FILE",
		Short: "Write a conf file as Proxmox will write it, without a controller",
		Long: `Write a file ("-" for stdin) as Proxmox writes it when it next writes the conf: at a stop of the container, or at any
pct set. The bytes are exact. Nobody is asked: it needs no controller, no agent and no settings.

Exit status: 1 if Proxmox's parser or writer dies on the file.`,
		Args: exactly("FILE"),
		RunE: p.alone(func(ctx context.Context, s *session, args []string) error {
			name, conf, err := s.readConf(ctx, args[0])
			if err != nil {
				return err
			}
			canonical, err := pveconf.Parse(conf).Canonical()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			_, err = s.out.Write(canonical)
			return err
		}),
	}
	return cmd
}

// readConf reads a conf from a path, or from stdin if that is "-", and returns what to call it.
func (s *session) readConf(ctx context.Context, path string) (name string, conf []byte, err error) {
	name, conf, err = s.readFile(ctx, path, maxConf)
	switch {
	case errors.Is(err, context.Canceled):
		return "", nil, errors.New("interrupted")
	case err != nil:
		return "", nil, fmt.Errorf("read the conf: %w", err)
	}
	return name, conf, nil
}

func confInspect(s *session, name string, f *pveconf.File, o confInspectOptions) error {
	switch {
	case o.proxmox:
		config, err := f.ConfigJSON()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		var b bytes.Buffer
		if err := json.Indent(&b, config, "", "  "); err != nil {
			return err
		}
		_, err = s.out.Write(append(b.Bytes(), '\n'))
		return err
	case o.diff:
		canonical, err := f.Canonical()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return output.WriteDiff(s.out, s.paint, "", name, name+" (as Proxmox writes it)", f.Bytes(), canonical)
	case s.json:
		return output.WriteValue(s.out, inspect(name, f))
	}
	return writeInspection(s, inspect(name, f))
}

// An inspection is what a conf file means. Its JSON names are documented.
type inspection struct {
	File        string    `json:"file"`
	Bytes       int       `json:"bytes"`
	Digest      string    `json:"digest"`
	Rewrite     rewrite   `json:"rewrite"`
	Main        section   `json:"main"`
	Pending     *section  `json:"pending,omitempty"`
	Snapshots   []section `json:"snapshots"`
	Passthrough given     `json:"passthrough"`
	Findings    []remark  `json:"findings"`
}

// A rewrite is what Proxmox makes of the file the next time it writes it.
type rewrite struct {
	Possible bool   `json:"possible"` // false: Proxmox's parser or writer dies
	Reason   string `json:"reason"`   // why it is not
	Removed  int    `json:"removed_lines"`
	Added    int    `json:"added_lines"`
}

type section struct {
	Name        string  `json:"name"`
	Line        int     `json:"line"` // of the header; 0 for the main section
	Description string  `json:"description"`
	Properties  []entry `json:"properties"`
	Raw         []entry `json:"raw"`
}

type entry struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Line  int    `json:"line"`
}

// A given is what the main section gives of a node's NVIDIA devices.
type given struct {
	Mode    string        `json:"mode"` // "none", "raw", "native" or "mixed"
	Minors  []int         `json:"gpu_minors"`
	Devices []givenDevice `json:"devices"`
}

// A givenDevice has the number -1 where only a node knows it.
type givenDevice struct {
	Path  string `json:"path"`
	Major int    `json:"major"`
	Minor int    `json:"minor"`
}

func inspect(name string, f *pveconf.File) inspection {
	before := f.Bytes()
	in := inspection{File: name, Bytes: len(before), Digest: f.Digest(), Snapshots: []section{}, Findings: remarksOffline(f)}
	if after, err := f.Canonical(); err != nil {
		in.Rewrite.Reason = err.Error()
	} else {
		in.Rewrite.Possible = true
		in.Rewrite.Removed, in.Rewrite.Added = output.CountDiff(before, after)
	}
	in.Main = sectionOf(pveconf.Section{Description: f.Description(), Properties: f.Properties(), Raw: f.Raw()})
	if pending := f.Pending(); pending.Line > 0 {
		s := sectionOf(pending)
		in.Pending = &s
	}
	for _, s := range f.Snapshots() {
		in.Snapshots = append(in.Snapshots, sectionOf(s))
	}
	p, _ := passthrough.Offline(f)
	in.Passthrough = given{Mode: p.Mode.String(), Minors: []int{}, Devices: []givenDevice{}}
	for _, g := range p.GPUs {
		in.Passthrough.Minors = append(in.Passthrough.Minors, g.Minor)
	}
	for _, d := range p.Devices {
		in.Passthrough.Devices = append(in.Passthrough.Devices, givenDevice(d))
	}
	return in
}

func sectionOf(s pveconf.Section) section {
	entries := func(from []pveconf.Entry) []entry {
		to := make([]entry, len(from))
		for i, e := range from {
			to[i] = entry(e)
		}
		return to
	}
	return section{Name: s.Name, Line: s.Line, Description: s.Description, Properties: entries(s.Properties), Raw: entries(s.Raw)}
}

func writeInspection(s *session, in inspection) error {
	fmt.Fprintf(s.out, "%s: %d bytes, digest %s\n", output.Clean(in.File), in.Bytes, in.Digest)
	switch r := in.Rewrite; {
	case !r.Possible:
		fmt.Fprintln(s.out, s.paint.Text(output.Bad, r.Reason))
	case r.Removed+r.Added == 0:
		fmt.Fprintln(s.out, "It is as Proxmox writes it: the next rewrite changes nothing.")
	default:
		fmt.Fprintf(s.out, "Proxmox's next rewrite removes %s and adds %d: --diff shows them.\n", count(r.Removed, "line"), r.Added)
	}
	err := writeSection(s, in.Main)
	if in.Pending != nil {
		fmt.Fprintf(s.out, "\nPending, from line %d:\n", in.Pending.Line)
		err = errors.Join(err, writeSection(s, *in.Pending))
	}
	if len(in.Snapshots) > 0 {
		fmt.Fprintf(s.out, "\nSnapshots:\n")
	}
	for _, snapshot := range in.Snapshots {
		fmt.Fprintf(s.out, "%d: %s: %s, %s\n", snapshot.Line, output.Clean(snapshot.Name),
			plural(len(snapshot.Properties), "property", "properties"), count(len(snapshot.Raw), "raw line"))
	}
	return errors.Join(err, writeGiven(s, in.Passthrough), writeRemarks(s, in.Findings))
}

func writeSection(s *session, sec section) error {
	if sec.Description != "" {
		fmt.Fprintf(s.out, "\nDescription:\n%s\n", output.CleanLines(strings.TrimSuffix(sec.Description, "\n")))
	}
	if len(sec.Properties)+len(sec.Raw) == 0 {
		return nil
	}
	fmt.Fprintln(s.out)
	t := output.NewTable(s.paint, "line", "key", "value")
	for _, entries := range [][]entry{sec.Properties, sec.Raw} {
		for _, e := range entries {
			t.Row(strconv.Itoa(e.Line), e.Key, e.Value)
		}
	}
	return t.Write(s.out)
}

func writeGiven(s *session, p given) error {
	if len(p.Devices) == 0 {
		_, err := fmt.Fprintf(s.out, "\nIt gives no NVIDIA device.\n")
		return err
	}
	gpus := "no GPU"
	switch len(p.Minors) {
	case 0:
	case 1:
		gpus = "the GPU of minor " + joinInts(p.Minors)
	default:
		gpus = "the GPUs of minors " + strings.ReplaceAll(joinInts(p.Minors), ",", ", ")
	}
	fmt.Fprintf(s.out, "\nIt gives %s (%s):\n", gpus, p.Mode)
	t := output.NewTable(s.paint, "path", "numbers")
	for _, d := range p.Devices {
		numbers := ""
		if d.Major >= 0 && d.Minor >= 0 {
			numbers = fmt.Sprintf("%d:%d", d.Major, d.Minor)
		}
		t.Row(d.Path, numbers)
	}
	return t.Write(s.out)
}

func writeRemarks(s *session, remarks []remark) error {
	var b strings.Builder
	for _, r := range remarks {
		b.WriteString(r.text(s.paint, "") + "\n")
	}
	if b.Len() == 0 {
		return nil
	}
	_, err := io.WriteString(s.out, "\nFindings:\n"+b.String())
	return err
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
