package xid_test

import (
	"testing"

	"phoenix.internal/agent/xid"
)

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		line string
		want xid.Event
	}{
		"with process": {
			"NVRM: Xid (PCI:0000:01:00): 31, pid=1234, name=python3, Ch 00000008, intr 00000000. MMU Fault",
			xid.Event{PCIAddress: "0000:01:00.0", Code: 31, GPUInstance: -1, ComputeInstance: -1, PID: 1234, Process: "python3", Text: "Ch 00000008, intr 00000000. MMU Fault"},
		},
		"process in quotes": {
			"NVRM: Xid (PCI:0000:C1:00): 13, pid='<unknown>', name=<unknown>, Graphics Exception",
			xid.Event{PCIAddress: "0000:c1:00.0", Code: 13, GPUInstance: -1, ComputeInstance: -1, Text: "pid='<unknown>', name=<unknown>, Graphics Exception"},
		},
		"GPU instance": {
			"NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7, name=a b, Contained: SM",
			xid.Event{PCIAddress: "0000:01:00.0", Code: 94, GPUInstance: 5, ComputeInstance: -1, PID: 7, Process: "a b", Text: "Contained: SM"},
		},
		"compute instance": {
			"NVRM: Xid (PCI:0000:01:00 GPU-I:05 GPU-CI:00): 13, Graphics Exception",
			xid.Event{PCIAddress: "0000:01:00.0", Code: 13, GPUInstance: 5, ComputeInstance: 0, Text: "Graphics Exception"},
		},
		"old driver": {
			"NVRM: Xid (0000:03:00): 14, Channel 00000001",
			xid.Event{PCIAddress: "0000:03:00.0", Code: 14, GPUInstance: -1, ComputeInstance: -1, Text: "Channel 00000001"},
		},
		"long domain": {
			"NVRM: Xid (PCI:00000000:01:00): 79, GPU has fallen off the bus.\n",
			xid.Event{PCIAddress: "0000:01:00.0", Code: 79, GPUInstance: -1, ComputeInstance: -1, Text: "GPU has fallen off the bus."},
		},
		"follows another": {
			"NVRM: Xid (PCI:0000:01:00): 45, pid=9, name=x, Ch 00000010, errorString CTX SWITCH TIMEOUT, Info 0x1, caused by previous Xid 109",
			xid.Event{
				PCIAddress: "0000:01:00.0", Code: 45, GPUInstance: -1, ComputeInstance: -1, PID: 9, Process: "x",
				Text: "Ch 00000010, errorString CTX SWITCH TIMEOUT, Info 0x1, caused by previous Xid 109", CausedBy: 109,
			},
		},
		"lost without XID": {
			"NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.",
			xid.Event{PCIAddress: "0000:41:00.0", Code: 79, GPUInstance: -1, ComputeInstance: -1, Text: "NVRM: GPU 0000:41:00.0: GPU has fallen off the bus."},
		},
		"nothing after the number": {
			"NVRM: Xid (PCI:0000:01:00): 62",
			xid.Event{PCIAddress: "0000:01:00.0", Code: 62, GPUInstance: -1, ComputeInstance: -1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := xid.Parse(test.line)
			if !ok || got != test.want {
				t.Errorf("Parse(%q) = %+v, %v, want %+v", test.line, got, ok, test.want)
			}
		})
	}
}

func TestParseOther(t *testing.T) {
	for _, line := range []string{
		"",
		"NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.105.08",
		"NVRM: API mismatch: the client 'nvidia-smi' (pid 77)",
		"somebody wrote NVRM: Xid (PCI:0000:01:00): 79",
		"NVRM: Xid (PCI:0000:01:00): x",
		"NVRM: Xid (PCI:0000:01:00): 1234567, too long for an XID",
		"nvidia-nvswitch0: SXid (PCI:0000:05:00.0): 12028, Non-fatal",
		"usb 1-1: device 0000:41:00 has fallen off the bus",
	} {
		if e, ok := xid.Parse(line); ok {
			t.Errorf("Parse(%q) = %+v, want nothing", line, e)
		}
	}
}

// TestClasses holds the choices where NVIDIA's sources disagree, and one of each class.
func TestClasses(t *testing.T) {
	for code, want := range map[int]xid.Class{
		13: xid.Application, 31: xid.Application, 94: xid.Application, 43: xid.Informational, 45: xid.Informational, 63: xid.Informational,
		92: xid.Watch, 109: xid.Watch, 48: xid.Reset, 64: xid.Reset, 95: xid.Reset, 119: xid.Reset, 79: xid.Reboot, 54: xid.Support,
		74: xid.Support, 1: xid.Unknown, 176: xid.Unknown, 99999: xid.Unknown,
	} {
		if got := (xid.Event{Code: code}).Class(); got != want {
			t.Errorf("class of %d is %v, want %v", code, got, want)
		}
	}
}

// XID 154 says itself what the GPU needs, and also that it needs nothing any more.
func TestRecoveryAction(t *testing.T) {
	for text, want := range map[string]xid.Class{
		"GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)":   xid.Reset,
		"GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)": xid.Reboot,
		"GPU recovery action changed from 0x0 (None) to 0x4 (Drain and Reset)":      xid.Reset,
		"GPU recovery action changed from 0x1 (GPU Reset Required) to 0x0 (None)":   xid.Informational,
		"something else": xid.Reset,
	} {
		e, ok := xid.Parse("NVRM: Xid (PCI:0000:01:00): 154, " + text)
		if got := e.Class(); !ok || got != want || e.Recovered() != (want == xid.Informational) {
			t.Errorf("%q: class %v, recovered %v, want %v", text, got, e.Recovered(), want)
		}
	}
	if (xid.Event{Code: 45, Text: "to 0x0"}).Recovered() {
		t.Error("XID 45 passes for a recovery")
	}
}

func TestClassNames(t *testing.T) {
	for c := xid.Informational; c <= xid.Support; c++ {
		if got, err := xid.ParseClass(c.String()); err != nil || got != c {
			t.Errorf("ParseClass(%q) = %v, %v", c.String(), got, err)
		}
		if c.Advice() == "" {
			t.Errorf("%v has no advice", c)
		}
	}
	for _, bad := range []string{"", "Reset", "fatal"} {
		if c, err := xid.ParseClass(bad); err == nil {
			t.Errorf("ParseClass(%q) = %v, want an error", bad, c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add("NVRM: Xid (PCI:0000:01:00 GPU-I:05 GPU-CI:00): 13, pid=1, name=a, caused by previous Xid 109")
	f.Add("NVRM: GPU 0000:41:00.0: GPU has fallen off the bus.")
	f.Fuzz(func(t *testing.T, s string) {
		e, ok := xid.Parse(s)
		if !ok {
			return
		}
		if len(e.PCIAddress) < len("0000:01:00.0") || e.Code < 0 || e.Code > 99999 || e.GPUInstance < -1 || e.PID < 0 || len(e.Text) > len(s) {
			t.Errorf("Parse(%q) = %+v", s, e)
		}
	})
}
