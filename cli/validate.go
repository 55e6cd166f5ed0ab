package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

// maxFleetFile is how much of a fleet file the API takes, in MiB.
const maxFleetFile = 8

func (p *Program) validateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate [FILE]",
		Short: "Check a fleet file",
		Long: `Check a fleet file and show every error and warning with its line.

With FILE (or "-" for stdin) nobody is asked: it needs no controller, no agent and no settings.
Without FILE the controller checks the fleet file that it uses.

Exit status: 0 if there is no error; warnings do not count.`,
		Args: between(0, "FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return p.connected(func(ctx context.Context, s *session, _ []string) error {
					return validate(ctx, s, &controllerv1.ValidateFleetRequest{})
				})(cmd, args)
			}
			return p.offline(func(ctx context.Context, s *session, args []string) error {
				r, err := fleetFile(ctx, s, args[0])
				if err != nil {
					return err
				}
				return validate(ctx, s, r)
			})(cmd, args)
		},
	}
}

// fleetFile reads a fleet file from a path, or from stdin if that is "-".
func fleetFile(ctx context.Context, s *session, path string) (*controllerv1.ValidateFleetRequest, error) {
	name, content, err := s.readFile(ctx, path, maxFleetFile)
	if err != nil {
		return nil, fmt.Errorf("read the fleet file: %w", err)
	}
	if len(content) == 0 {
		content = []byte("\n") // no content at all would mean the controller's own file
	}
	return &controllerv1.ValidateFleetRequest{Name: name, Content: content}, nil
}

// readFile reads a file of at most so many MiB, or stdin if its path is "-", and returns what to call it.
func (s *session) readFile(ctx context.Context, path string, mostMiB int) (name string, content []byte, err error) {
	if name = path; path == "-" {
		name = "stdin"
	}
	type result struct {
		content []byte
		err     error
	}
	done := make(chan result, 1)
	// Nothing ends a read of a terminal or of a silent pipe, nor the opening of one. After an interrupt it is left to the
	// end of the process.
	go func() {
		content, err := s.readAtMost(path, int64(mostMiB)<<20+1)
		done <- result{content, err}
	}()
	select {
	case <-ctx.Done():
		return "", nil, ctx.Err()
	case r := <-done:
		if r.err == nil && len(r.content) > mostMiB<<20 {
			r.err = fmt.Errorf("%s is larger than %d MiB", name, mostMiB)
		}
		return name, r.content, r.err
	}
}

// readAtMost reads the first bytes of a file, or of stdin if its path is "-".
func (s *session) readAtMost(path string, bytes int64) ([]byte, error) {
	in := s.in
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	return io.ReadAll(io.LimitReader(in, bytes))
}

func validate(ctx context.Context, s *session, r *controllerv1.ValidateFleetRequest) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	a, err := controllerv1.NewFleetServiceClient(s.conn).ValidateFleet(ctx, r)
	if err != nil {
		return fmt.Errorf("check the fleet file: %w", err)
	}
	if s.json {
		err = output.WriteJSON(s.out, a)
	} else {
		err = writeFindings(s, a, r.GetName())
	}
	if err == nil && !a.GetValid() {
		err = errQuiet
	}
	return err
}

func writeFindings(s *session, a *controllerv1.ValidateFleetResponse, name string) error {
	if name == "" {
		name = s.fleetFile
	}
	var mistakes, warnings int
	for _, f := range a.GetFindings() {
		if f.GetSeverity() == controllerv1.Severity_SEVERITY_WARNING {
			warnings++
			fmt.Fprintln(s.out, s.paint.Text(output.Warn, f.GetText()))
		} else {
			mistakes++
			fmt.Fprintln(s.out, s.paint.Text(output.Bad, f.GetText()))
		}
	}
	judgement := s.paint.Text(output.Good, "valid")
	if !a.GetValid() {
		judgement = s.paint.Text(output.Bad, "not valid")
	}
	_, err := fmt.Fprintf(s.out, "%s: %s: %s, %s, %s\n", output.Clean(name), judgement,
		count(len(a.GetContainers()), "container"), count(mistakes, "error"), count(warnings, "warning"))
	return err
}
