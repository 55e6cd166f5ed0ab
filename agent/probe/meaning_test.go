package probe_test

import (
	"strings"
	"testing"

	"phoenix.internal/agent/probe"
)

var outcomes = []probe.Outcome{probe.Opened, probe.NoDriver, probe.Denied, probe.NoPermission, probe.Absent, probe.NotADevice,
	probe.WrongNumber, probe.Timeout, probe.Failed}

func TestExplain(t *testing.T) {
	for _, test := range []struct {
		name            string
		result          probe.Result
		given           bool
		meaning, advice string // beginnings
	}{
		{"given and open", probe.Result{Outcome: probe.Opened}, true, "can be opened", ""},
		{"ENXIO", probe.Result{Outcome: probe.NoDriver, Errno: "ENXIO"}, true, "can be reached, but no driver answers", "look at nvidia-smi"},
		{"EPERM", probe.Result{Outcome: probe.Denied, Errno: "EPERM"}, true, "is in the container, but its device cgroup refuses it", "apply, which writes the rule"},
		{"EACCES", probe.Result{Outcome: probe.NoPermission, Errno: "EACCES"}, true, "is in the container, but its mode or owner refuses", "give the device node on the host mode 0666"},
		{"ENOENT", probe.Result{Outcome: probe.Absent, Errno: "ENOENT"}, true, "is not in the container", "restart the container"},
		{"not a device", probe.Result{Outcome: probe.NotADevice}, true, "is an ordinary file", "make sure that the host has the device"},
		{"wrong numbers", probe.Result{Outcome: probe.WrongNumber}, true, "is a device with other numbers", "apply, then restart"},
		{"hang", probe.Result{Outcome: probe.Timeout}, true, "did not answer in time", "look at the host's kernel log for Xid"},
		{"another error", probe.Result{Outcome: probe.Failed, Errno: "EXDEV"}, true, "could not be opened: EXDEV", "look up the error number"},
		{"an error that is known", probe.Result{Outcome: probe.Failed, Errno: "EIO"}, true, "could not be opened: EIO, the driver could not start the GPU", "look at the host's kernel log for Xid or"},
		{"not given but open", probe.Result{Outcome: probe.Opened}, false, "can be opened although the conf does not give it", "restart the container if"},
		{"not given, no driver", probe.Result{Outcome: probe.NoDriver}, false, "is let through by the device cgroup although", "restart the container if"},
		{"not given, hang", probe.Result{Outcome: probe.Timeout}, false, "is let through, or so it seems", "look at the host's kernel log"},
		{"not given, denied", probe.Result{Outcome: probe.Denied}, false, "not given, and out of reach", ""},
		{"not given, absent", probe.Result{Outcome: probe.Absent}, false, "not given, and out of reach", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.result.Explain(test.given)
			if !strings.HasPrefix(got.Meaning, test.meaning) || !strings.HasPrefix(got.Advice, test.advice) || (test.advice == "") != (got.Advice == "") {
				t.Errorf("%+v, given %v: %+v, want %q..., %q...", test.result, test.given, got, test.meaning, test.advice)
			}
		})
	}
}

// Every outcome of a device that is given has its own meaning, and something to do unless all is well.
func TestExplainIsComplete(t *testing.T) {
	seen := make(map[string]probe.Outcome)
	for _, o := range outcomes {
		e := probe.Result{Outcome: o}.Explain(true)
		if other, ok := seen[e.Meaning]; ok {
			t.Errorf("%s and %s mean the same: %s", o, other, e.Meaning)
		}
		seen[e.Meaning] = o
		if (e.Advice == "") != (o == probe.Opened) {
			t.Errorf("%s: advice %q", o, e.Advice)
		}
		for _, s := range []string{e.Meaning, e.Advice} {
			if strings.HasSuffix(s, ".") || s != "" && strings.ToLower(s[:1]) != s[:1] {
				t.Errorf("%s: %q has a capital or a full stop", o, s)
			}
		}
	}
}
