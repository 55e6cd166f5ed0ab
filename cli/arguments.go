package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// exactly takes one argument for each name.
func exactly(names ...string) cobra.PositionalArgs { return between(len(names), names...) }

// between takes an argument for each name, of which the first least must be there.
func between(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			missing, verb := names[len(args):least], "is"
			if len(missing) > 1 {
				verb = "are"
			}
			return misuse(cmd, fmt.Errorf("%s: %s %s missing", nameOf(cmd), strings.Join(missing, " and "), verb))
		case len(args) > len(names) && len(names) == 0:
			return misuse(cmd, fmt.Errorf("%s takes no arguments, not %q", nameOf(cmd), args[0]))
		case len(args) > len(names):
			return misuse(cmd, fmt.Errorf("%s takes only %s, not also %q", nameOf(cmd), strings.Join(names, " and "), args[len(names)]))
		}
		return nil
	}
}

// nameOf returns the command as typed, without the program.
func nameOf(cmd *cobra.Command) string {
	return strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
}

// ctidsArgs takes any number of CTIDs.
func ctidsArgs(cmd *cobra.Command, args []string) error {
	for _, arg := range args {
		if _, err := parseCTID(arg); err != nil {
			return misuse(cmd, err)
		}
	}
	return nil
}

// ctidArgs is [between] where the first argument is a CTID.
func ctidArgs(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := between(least, names...)(cmd, args); err != nil {
			return err
		}
		for i, name := range names[:min(len(args), len(names))] {
			if name != "CTID" {
				continue
			}
			if _, err := parseCTID(args[i]); err != nil {
				return misuse(cmd, err)
			}
		}
		return nil
	}
}

func parseCTID(s string) (int32, error) {
	n, err := strconv.ParseInt(s, 10, 32)
	if err != nil || n < 100 || n > 999999999 {
		return 0, fmt.Errorf("%q is not a CTID: that is a number from 100 to 999999999", s)
	}
	return int32(n), nil
}

// mustCTID is parseCTID for an argument that was checked.
func mustCTID(s string) int32 {
	ctid, err := parseCTID(s)
	if err != nil {
		panic(err)
	}
	return ctid
}

func parseRevision(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%q is not a revision: that is a number from 1; see \"phoenix-cli conf revisions CTID\"", s)
	}
	return n, nil
}

// A ctidSet is the CTIDs of a command line, as arguments and as --ctid flags, ascending and each once.
type ctidSet []int32

func (c *ctidSet) flag(f *pflag.FlagSet) {
	f.Var(c, "ctid", "the same as `CTID` as an argument; repeatable")
}

func (c *ctidSet) add(args []string) []int32 {
	for _, arg := range args {
		*c = append(*c, mustCTID(arg))
	}
	slices.Sort(*c)
	*c = slices.Compact(*c)
	return *c
}

// Set implements [pflag.Value].
func (c *ctidSet) Set(s string) error {
	for part := range strings.SplitSeq(s, ",") {
		ctid, err := parseCTID(strings.TrimSpace(part))
		if err != nil {
			return err
		}
		*c = append(*c, ctid)
	}
	return nil
}

// Type implements [pflag.Value].
func (c *ctidSet) Type() string { return "CTID" }

// String implements [pflag.Value].
func (c *ctidSet) String() string { return joinInts(*c) }
