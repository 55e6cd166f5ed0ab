package bench_test

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// apply gives all containers the other GPU, again and again: replace the conf, stop, start, see that a process runs
// inside. For Phoenix that is an apply, which opens every device besides.
func (m *measuring) apply(t *testing.T, h *host) {
	h.writeScripts()
	n := len(h.ctids)
	// turn does the work for the other GPU and checks it.
	turn := func(who string, work func(gpu int) time.Duration) func() []time.Duration {
		return func() []time.Duration {
			h.assign(1 - h.gpu)
			took := work(h.gpu)
			h.check(t, who)
			return []time.Duration{took}
		}
	}
	ordered := func(o func(gpu int) order) func(gpu int) time.Duration {
		return func(gpu int) time.Duration { return h.inside(t, o(gpu)).Took[0] }
	}
	loop := func(stop, start []string) func(gpu int) time.Duration {
		return ordered(func(gpu int) order {
			return order{Steps: &steps{CTIDs: h.ctids, GPU: gpu, Stop: stop, Start: start}}
		})
	}
	contestants := []*contestant{
		{name: "raw", run: turn("raw", loop([]string{"lxc-stop", "-k", "-n"}, []string{"lxc-start", "-d", "-n"}))},
		{name: "raw with pct", run: turn("raw with pct", loop([]string{"pct", "stop"}, []string{"pct", "start"}))},
		{name: "bash loop", run: turn("the bash loop", ordered(func(gpu int) order {
			return order{Argv: []string{"bash", prepared + "/loop", fmt.Sprint(gpu)}}.with(h.ctids)
		}))},
	}
	goals := []goal{{"phoenix-cli, controller", "raw", 1.5}, {"phoenix-cli --agent", "raw", 1.5}}
	if n > 1 {
		contestants = append(contestants, &contestant{name: "xargs -P4", run: turn("xargs", ordered(func(gpu int) order {
			return order{Argv: []string{
				"sh", "-ec", `gpu=$1; shift; printf '%s\n' "$@" | xargs -P4 -n1 bash ` + prepared + `/loop $gpu`, "xargs", fmt.Sprint(gpu),
			}}.with(h.ctids)
		}))})
		goals = nil
		for _, name := range []string{"phoenix-cli, controller", "phoenix-cli --agent"} {
			goals = append(goals, goal{name, "xargs -P4", 1.3}, goal{name, "Ansible", 1. / 50})
		}
	}
	contestants = append(contestants,
		&contestant{name: "phoenix-cli, controller", run: turn("phoenix-cli", func(int) time.Duration {
			_, took := h.must(t, "apply")
			return took
		})},
		&contestant{name: "phoenix-cli --agent", run: turn("phoenix-cli --agent", func(int) time.Duration {
			_, took := h.must(t, append(h.local(), "apply")...)
			return took
		})},
	)
	if run := m.ansible(t, h); run != nil {
		// It takes a thousand times longer than the others, so it has fewer rounds, and those last in their round.
		contestants = append(contestants, &contestant{name: "Ansible", rounds: ansibleRounds, run: turn("Ansible", ordered(run))})
	}
	m.measure(t, fmt.Sprintf("apply, %d changed", n), m.rounds, contestants, goals...)
}

// writeScripts writes what a person would write.
func (h *host) writeScripts() {
	h.write(h.node.Dir()+prepared+"/loop", `set -e
gpu=$1; shift
for ctid in "$@"; do
	conf=/etc/pve/lxc/$ctid.conf
	cp `+prepared+`/$gpu/$ctid.conf $conf.new
	mv $conf.new $conf
	lxc-stop -n $ctid -k
	lxc-start -n $ctid -d
	lxc-attach -n $ctid -- true
done
`)
}

// pctCalls counts how often pct is started, which costs 0.6 s each on a real host.
func (m *measuring) pctCalls(t *testing.T, h *host) {
	ctid := fmt.Sprint(h.ctids[0])
	for _, c := range []struct {
		name  string
		most  int
		args  []string
		other bool // with the other GPU assigned
	}{
		{name: "apply, nothing changed", args: []string{"apply"}},
		{name: "containers", args: []string{"containers"}},
		{name: "exec", args: []string{"exec", ctid, "true"}},
		{name: "probe", args: []string{"probe", ctid}},
		{name: "apply, restart needed", args: []string{"apply", ctid}, other: true, most: 2},
	} {
		if c.other {
			h.assign(1 - h.gpu)
		}
		h.node.ResetPctCalls()
		h.must(t, c.args...)
		calls := h.node.PctCalls()
		m.addCount("pct started", c.name, len(calls), c.most)
	}
	h.must(t, "apply")
	h.check(t, "counting")
	slices.Sort(h.ctids)
}
