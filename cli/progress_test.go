package cli_test

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"

	"phoenix.internal/cli"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
)

// TestLiveProgress looks at what is left on a terminal of 100 columns after an apply.
func TestLiveProgress(t *testing.T) {
	c := newConsole(t)
	out, code := c.run(t, &fake{events: progressOf(controllerv1.RunState_RUN_STATE_FAILED)}, func() time.Time { return now }, "apply")
	if code != 1 {
		t.Errorf("exit %d, want 1", code)
	}
	if !strings.Contains(out, "\x1b[32m") || !strings.Contains(out, "\x1b[3A\r\x1b[J") {
		t.Errorf("neither colour nor a cursor that goes back in %q", out)
	}
	for _, seen := range []string{"⠋ ", "restart", "shutting down"} {
		if !strings.Contains(out, seen) {
			t.Errorf("%q was never shown", seen)
		}
	}
	golden(t, "live-apply-failed", screen(out))
}

// TestLiveProgressSizes looks at what is left on small terminals: the state of a container is seen on a narrow one, on a
// low one those that move stand first, and one without room has the log.
func TestLiveProgressSizes(t *testing.T) {
	for _, test := range []struct {
		name          string
		rows, columns uint16
		want          string // the lines before the notes
	}{
		{"narrow", 30, 40, "" +
			"= 900  Copy-Ba…  nothing to do         …\n" +
			"✔ 901  Copy-Cu…  succeeded         12.5…\n" +
			"✘ 910  Copy-VL…  failed             1.0…\n"},
		{"very narrow", 30, 20, "" +
			"= 900  Cop…  nothin…\n" +
			"✔ 901  Cop…  succee…\n" +
			"✘ 910  Cop…  failed…\n"},
		{"low", 4, 60, "" +
			"✘ 910  Copy-VLLM     pve1  failed             1.0s  check d…\n" +
			"✔ 901  Copy-Cuda12…  pve1  succeeded         12.5s  feature…\n" +
			"… and 1 more\n"},
		{"no room", 3, 100, "" +
			"2026-11-23 15:00:00Z run 20261123T150000-1: 3 containers\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newConsole(t)
			c.resize(t, test.rows, test.columns)
			f := &fake{events: progressOf(controllerv1.RunState_RUN_STATE_FAILED)}
			out, _ := c.run(t, f, func() time.Time { return now }, "apply")
			shown := regexp.MustCompile(` +\n`).ReplaceAllString(screen(out), "\n")
			if !strings.HasPrefix(shown, test.want) {
				t.Errorf("on %d columns, %d rows:\n%s\nwant at first:\n%s", test.columns, test.rows, shown, test.want)
			}
		})
	}
}

// screen returns what a terminal shows after out: it knows the few sequences that phoenix-cli writes.
func screen(out string) string {
	lines := []string{""}
	row := 0
	for len(out) > 0 {
		if m := regexp.MustCompile(`^\x1b\[(\d*)([AJKm])`).FindStringSubmatch(out); m != nil {
			switch m[2] {
			case "A":
				row -= int(m[1][0] - '0')
			case "J":
				lines = append(lines[:row], "")
			}
			out = out[len(m[0]):]
			continue
		}
		switch ch := out[0]; ch {
		case '\n':
			if row++; row == len(lines) {
				lines = append(lines, "")
			}
		case '\r':
		default:
			lines[row] += string([]byte{ch})
		}
		out = out[1:]
	}
	return strings.Join(lines, "\n")
}

// TestInterrupt ends the context, as Ctrl-C does, when the run has begun.
func TestInterrupt(t *testing.T) {
	running := applied(controllerv1.RunState_RUN_STATE_RUNNING)
	for _, test := range []struct {
		name  string
		agent bool
		want  result
	}{
		{
			name: "a controller's run goes on",
			want: result{code: 1, stdout: "2026-11-23 15:00:00Z run 20261123T150000-1: 3 containers\n",
				stderr: "phoenix-cli: interrupted; run 20261123T150000-1 goes on in the controller\n" +
					"  Watch it: phoenix-cli runs watch 20261123T150000-1; end it: phoenix-cli runs cancel 20261123T150000-1.\n"},
		},
		{
			name: "an own run is canceled and waited for", agent: true,
			want: result{code: 1, stdout: "2026-11-23 15:00:00Z run 20261123T150000-1: 3 containers\nrun 20261123T150000-1 canceled: 1 unchanged, 2 pending\n",
				stderr: "phoenix-cli: interrupted: the steps under way finish, no more begin; Ctrl-C again ends at once\n" +
					"phoenix-cli: run 20261123T150000-1 canceled: 1 unchanged, 2 pending\n" +
					"  Every step: phoenix-cli runs show 20261123T150000-1. An apply repeated begins where this one ended.\n"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			settle(t)
			ctx, interrupt := context.WithCancel(t.Context())
			defer interrupt()
			canceled := make(chan struct{})
			f := &fake{cancel: func() { close(canceled) }}
			left := make(chan struct{})
			f.events = func(send func(proto.Message) error) error {
				if err := send(running); err != nil {
					return err
				}
				select {
				case <-canceled:
				case <-left:
					return nil
				}
				last := proto.CloneOf(running)
				last.State = controllerv1.RunState_RUN_STATE_CANCELED
				last.Containers[1].Notes = nil
				return send(last)
			}
			args := []string{"apply"}
			if test.agent {
				args = append(args, "--agent", "pve1")
			}
			var stdout, stderr bytes.Buffer
			out := writer(func(b []byte) (int, error) {
				interrupt() // once the run is shown
				return stdout.Write(b)
			})
			p := cli.Program{In: new(bytes.Buffer), Out: out, Err: &stderr, Connect: f.serve(t), Now: func() time.Time { return now }}
			code := p.Run(ctx, args)
			close(left)
			if got := (result{stdout.String(), stderr.String(), code}); got != test.want {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

// A writer is a function as an io.Writer.
type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// TestRequests covers that flags reach the controller.
func TestRequests(t *testing.T) {
	for _, test := range []struct {
		args string
		want string // the request in the text format, on one line
	}{
		{"apply 901 910 901 --ctid 950 --start --verify --restart-timeout 5s --parallel 8", `ctids:901 ctids:910 ctids:950 start:true verify:true restart_timeout:{seconds:5} parallel_per_node:8`},
		{"apply", `restart_timeout:{seconds:60} parallel_per_node:4`},
		{"plan --ctid 901,902 --start", `ctids:901 ctids:902 start:true`},
		{"status", `probe:true`},
		{"status --no-probe 901", `ctids:901`},
		{"status --probe=false", ``},
		{"restart 901 --timeout 0 --no-force", `ctid:901 timeout:{} no_force:true`},
		{"conf restore 901 3 --dry-run", `ctid:901 revision:3 dry_run:true`},
		{"devices --node pve1", `node:"pve1"`},
		{"containers --node pve2", `node:"pve2"`},
		{"runs --limit 5", `limit:5`},
		{"runs cancel 2026", `run:"2026"`},
	} {
		t.Run(test.args, func(t *testing.T) {
			f := &fake{events: progressOf(controllerv1.RunState_RUN_STATE_SUCCEEDED)}
			if got := run(t, f, nil, strings.Fields(test.args)...); got.code == 2 {
				t.Fatalf("got %+v", got)
			}
			got := text(f.last(t))
			if got != test.want {
				t.Errorf("request %s, want %s", got, test.want)
			}
		})
	}
}

// text returns a message in proto's text format, without the spaces that it puts at random places.
func text(m proto.Message) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " "), ": ", ":")
}
