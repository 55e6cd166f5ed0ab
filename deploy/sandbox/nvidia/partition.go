package nvidia

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
)

// A profile is a kind of GPU instance of the H100 80GB: its number for nvidia-smi, the slices and the memory that it
// takes, and the numbers that its instances may have.
type profile struct {
	name      string
	id        int
	slices    int
	memoryMiB int
	firstGI   int
	most      int
}

var profiles = []profile{
	{"7g.80gb", 0, 7, 81100, 0, 1},
	{"4g.40gb", 5, 4, 40448, 1, 1},
	{"3g.40gb", 9, 3, 40448, 1, 2},
	{"2g.20gb", 14, 2, 20096, 3, 3},
	{"1g.10gb", 19, 1, 9984, 7, 7},
}

var profileIDs = func() map[string]int {
	ids := map[string]int{}
	for _, p := range profiles {
		ids[p.name] = p.id
	}
	return ids
}()

// slicesOfCard is how many compute slices an H100 has.
const slicesOfCard = 7

// Errors of partitioning.
var (
	errNoMIG     = errors.New("Not Supported")
	errMIGOff    = errors.New("MIG mode is not enabled")
	errNoRoom    = errors.New("Insufficient Resources")
	errInUse     = errors.New("In use by another client")
	errNoProfile = errors.New("Invalid Argument")
)

// Partition adds a GPU instance with one compute instance; word is a profile's name or number. The UUID is a new one.
func (g *GPU) Partition(word string) error {
	i := slices.IndexFunc(profiles, func(p profile) bool { return word == p.name || word == strconv.Itoa(p.id) })
	switch {
	case !g.MIG.Capable:
		return errNoMIG
	case !g.MIG.Current:
		return errMIGOff
	case i < 0:
		return errNoProfile
	}
	p := profiles[i]
	used := p.slices
	for _, d := range g.MIG.Devices {
		for _, q := range profiles {
			if q.name == d.Profile {
				used += q.slices
			}
		}
	}
	for gi := p.firstGI; gi < p.firstGI+p.most && used <= slicesOfCard; gi++ {
		if !slices.ContainsFunc(g.MIG.Devices, func(d MIGDevice) bool { return d.GI == gi }) {
			g.MIG.Devices = append(g.MIG.Devices, MIGDevice{"MIG-" + newUUID(), gi, 0, p.name, p.memoryMiB})
			return nil
		}
	}
	return errNoRoom
}

// SetMIG turns partitioning on or off; off removes the instances. A card in use keeps its mode, and has another one
// pending until a reset.
func (g *GPU) SetMIG(on bool) error {
	if !g.MIG.Capable {
		return errNoMIG
	}
	g.MIG.Pending = on
	if len(g.Processes) > 0 && g.MIG.Current != on {
		return errInUse
	}
	g.MIG.Current = on
	if !on {
		g.MIG.Devices = nil
	}
	return nil
}

func (r *smiRun) setMode() int {
	if r.mode != "0" && r.mode != "1" {
		return r.tools.usage("nvidia-smi", "-mig "+r.mode)
	}
	said := map[string]string{"0": "Disabled", "1": "Enabled"}[r.mode] + " MIG Mode for GPU %d\nAll done.\n"
	return r.change(func(g *GPU) error { return g.SetMIG(r.mode == "1") }, said)
}

func (r *smiRun) partition() int {
	return r.change(func(g *GPU) error {
		for _, word := range r.profiles {
			if err := g.Partition(word); err != nil {
				return err
			}
		}
		return nil
	}, "Successfully created the instances of GPU %d\n")
}

// change lets fn change each chosen card, and makes the nodes of what it then has.
func (r *smiRun) change(fn func(*GPU) error, said string) int {
	for _, card := range r.cards {
		var h Host
		err := r.tools.Tree.Change(func(now *Host) error {
			i := slices.IndexFunc(now.GPUs, func(g GPU) bool { return g.UUID == card.UUID })
			err := fn(&now.GPUs[i])
			h = *now
			return err
		})
		if err == nil {
			err = r.tools.Tree.MakeNodes(h.migNodes()...)
		}
		if err != nil {
			fmt.Fprintf(r.tools.Out, "GPU %d: %s: %v\n", card.Index, card.PCI, err)
			return 1
		}
		fmt.Fprintf(r.tools.Out, said, card.Index)
	}
	return 0
}
