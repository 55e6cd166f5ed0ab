package container_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/lxcmon"
	"phoenix.internal/agent/pct"
)

// program is a shell script.
func program(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

const accepted = "CTID 901 is managed by Proxmox's HA stack, which accepted the request, but the HA manager has not "

// Under Proxmox's HA stack pct only passes on a request and exits 0.
func TestStopUnderHA(t *testing.T) {
	for _, tc := range []struct {
		name     string
		running  bool
		withdraw string // what ha-manager does
		want     string // the error
		asked    string // what ha-manager was asked
	}{
		{"done", false, "exit 0", "", ""},
		{"not done: it must not be stopped later, when nobody starts it", true, "exit 0",
			accepted + "stopped it yet, after 0s; the request is taken back", "set ct:901 --state started\n"},
		{"not done, and not taken back", true, "echo no quorum >&2; exit 5",
			accepted + `stopped it yet, after 0s; it may do so later, because the request could not be taken back: program set 901: exit status 5: "no quorum"`,
			"set ct:901 --state started\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			if tc.running {
				h.run(901, lxcmon.Running)
			}
			asked := filepath.Join(t.TempDir(), "asked")
			p := h.runtime()
			p.HAPatience = time.Millisecond
			p.PCT = pct.Runner{
				Path:      program(t, `echo "Requesting HA stop for CT $2"`),
				HAManager: program(t, `echo "$*" >>`+asked+"\n"+tc.withdraw),
			}
			for name, stop := range map[string]func() error{
				"stop":     func() error { return p.Stop(t.Context(), 901) },
				"shutdown": func() error { return p.Shutdown(t.Context(), 901, time.Nanosecond) },
			} {
				if err := os.RemoveAll(asked); err != nil {
					t.Fatal(err)
				}
				err := stop()
				got := ""
				if e, ok := errors.AsType[*container.HAError](err); ok && e.CTID == 901 && e.Want == lxcmon.Stopped {
					got = e.Error()
				} else if err != nil {
					t.Errorf("%s: %v, want an HAError", name, err)
				}
				if got != tc.want {
					t.Errorf("%s: error %s\nwant %s", name, got, tc.want)
				}
				if b, _ := os.ReadFile(asked); string(b) != tc.asked {
					t.Errorf("%s: ha-manager was asked %q, want %q", name, b, tc.asked)
				}
			}
		})
	}
}

func TestProxmoxStart(t *testing.T) {
	const requested = `echo "Requesting HA start for CT $2"`
	for _, tc := range []struct {
		name    string
		pct     string
		log     string // of LXC
		running bool
		want    string
	}{
		{"runs", "exit 0", "", true, ""},
		{"requested, and runs", requested, "", true, ""},
		{"requested, and not tried", requested, "", false, accepted + "started it yet, after 0s"},
		{"requested, and tried in vain", requested, "first\nsecond\nthe third\nthe fourth\nthe fifth\n", false,
			accepted + `started it yet, after 0s; LXC's log ends with "second\nthe third\nthe fourth\nthe fifth"`},
		{"died at once", "exit 0", "init: no \x1b[31m console\n", false,
			`CTID 901 came up, but its init ended at once; LXC's log ends with "init: no \x1b[31m console"`},
		{"died at once, in silence", "exit 0", "", false, "CTID 901 came up, but its init ended at once"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			if tc.running {
				h.run(901, lxcmon.Running)
			}
			logs := t.TempDir()
			write := ""
			if tc.log != "" {
				said := filepath.Join(logs, "said")
				if err := os.WriteFile(said, []byte(tc.log), 0o600); err != nil {
					t.Fatal(err)
				}
				write = "cat " + said + " >" + logs + "/ct-901.stderr\n"
			}
			p := h.runtime()
			p.HAPatience = time.Millisecond
			p.PCT = pct.Runner{Path: program(t, write+tc.pct), Dir: logs}
			err := p.Start(t.Context(), 901)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tc.want {
				t.Errorf("error %s\nwant  %s", got, tc.want)
			}
		})
	}
}
