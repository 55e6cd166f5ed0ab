package bench_test

import (
	"fmt"
	"testing"
	"time"
)

// apply gives all containers the other GPU, again and again: replace the conf, stop, start, see that a process runs
// inside. For Phoenix that is an apply, which opens every device besides.
func (m *measuring) apply(t *testing.T, h *host) {
	h.writeScripts()
	n, rounds := len(h.ctids), m.rounds
	if n > 16 {
		rounds = min(rounds, 3)
	}
	contestants := []*contestant{
		{name: "raw", run: h.turn(t, h.loop(t, []string{"lxc-stop", "-k", "-n"}, []string{"lxc-start", "-d", "-n"}))},
		{name: "raw with pct", run: h.turn(t, h.loop(t, []string{"pct", "stop"}, []string{"pct", "start"}))},
		{name: "bash loop", run: h.turn(t, h.ordered(t, func(gpu int) order {
			return order{Argv: []string{"bash", prepared + "/loop", fmt.Sprint(gpu)}}.with(h.ctids)
		}))},
	}
	goals := []goal{{withController, "raw", 1.5}, {withAgent, "raw", 1.5}}
	if n > 1 {
		const parallel = "xargs -P4"
		goals = []goal{
			{withController, parallel, 1.3}, {withController, "Ansible", 1. / 50}, {withAgent, parallel, 1.3}, {withAgent, "Ansible", 1. / 50},
		}
		contestants = append(contestants, &contestant{name: parallel, run: h.turn(t, h.ordered(t, func(gpu int) order {
			return order{Argv: []string{
				"sh", "-ec", `gpu=$1; shift; printf '%s\n' "$@" | xargs -P4 -n1 bash ` + prepared + `/loop $gpu`, "xargs", fmt.Sprint(gpu),
			}}.with(h.ctids)
		}))})
	}
	contestants = append(contestants, h.phoenix(t)...)
	if run := m.ansible(t, h); run != nil {
		// It takes so much longer than the others that it has fewer rounds, and the last turn in them.
		contestants = append(contestants, &contestant{name: "Ansible", rounds: ansibleRounds, run: h.turn(t, h.ordered(t, run))})
	}
	defer h.profile(t, fmt.Sprintf("apply %d", n))()
	m.measure(t, fmt.Sprintf("apply, %d changed", n), rounds, contestants, goals...)
}

// gracefully is apply with guests that shut down in their own way.
func (m *measuring) gracefully(t *testing.T, h *host) {
	h.patiently(func() {
		contestants := append([]*contestant{
			{name: "raw", run: h.turn(t, h.loop(t, []string{"lxc-stop", "--timeout", "60", "--nokill", "-n"}, []string{"lxc-start", "-d", "-n"}))},
		}, h.phoenix(t)...)
		m.measure(t, fmt.Sprintf("apply, %d changed, graceful stop", len(h.ctids)), m.rounds, contestants)
	})
}

// The names of the contestants that are Phoenix as a person uses it.
const (
	withController = "phoenix-cli, controller"
	withAgent      = "phoenix-cli --agent"
)

func (h *host) phoenix(t *testing.T) []*contestant {
	return []*contestant{
		{name: withController, run: h.turn(t, func(int) time.Duration {
			_, took := h.must(t, "apply")
			return took
		})},
		{name: withAgent, run: h.turn(t, func(int) time.Duration {
			_, took := h.must(t, append(h.local(), "apply")...)
			return took
		})},
	}
}

// turn is one round of a contestant: it does the work for the other GPU, and what came of it is checked.
func (h *host) turn(t *testing.T, work func(gpu int) time.Duration) func() []time.Duration {
	return func() []time.Duration {
		h.assign(1 - h.gpu)
		took := work(h.gpu)
		h.check(t)
		return []time.Duration{took}
	}
}

// ordered is work that the worker does.
func (h *host) ordered(t *testing.T, of func(gpu int) order) func(gpu int) time.Duration {
	return func(gpu int) time.Duration { return h.inside(t, of(gpu)).Took[0] }
}

func (h *host) loop(t *testing.T, stop, start []string) func(gpu int) time.Duration {
	return h.ordered(t, func(gpu int) order {
		return order{Steps: &steps{CTIDs: h.ctids, GPU: gpu, Stop: stop, Start: start}}
	})
}

// writeScripts writes what a person would write instead.
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
	h.check(t)
}
