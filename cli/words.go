package cli

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/cli/output"
	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// word returns the name of an enum value as people read it: STEP_KIND_PATCH_CONF is "patch conf".
func word(e protoreflect.Enum) string {
	v := e.Descriptor().Values().ByNumber(e.Number())
	if v == nil {
		return strconv.Itoa(int(e.Number())) // of a newer server
	}
	if e.Number() == 0 {
		return ""
	}
	zero := string(e.Descriptor().Values().ByNumber(0).Name())
	name := strings.TrimPrefix(string(v.Name()), strings.TrimSuffix(zero, "UNSPECIFIED"))
	return strings.ToLower(strings.ReplaceAll(name, "_", " "))
}

func joinInts[T ~int32 | ~int64 | ~int](ns []T) string {
	s := make([]string, len(ns))
	for i, n := range ns {
		s[i] = strconv.FormatInt(int64(n), 10)
	}
	return strings.Join(s, ",")
}

// count returns "1 container" or "2 containers".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// gpus returns the GPUs of a passthrough by index, "?" for one whose GPU is gone, and a MIG device behind the index of its
// GPU by what is known of it: "0:MIG-5b1f4c8e". Empty if there are none.
func gpus(p *typev1.Passthrough) string {
	var s []string
	for _, g := range p.GetGpus() {
		switch {
		case g.GetIndex() < 0:
			s = append(s, fmt.Sprintf("?(minor %d)", g.GetMinor()))
		case g.GpuInstanceId == nil:
			s = append(s, strconv.Itoa(int(g.GetIndex())))
		case g.GetMigUuid() == "":
			s = append(s, fmt.Sprintf("%d:instance %d/%d", g.GetIndex(), g.GetGpuInstanceId(), g.GetComputeInstanceId()))
		default:
			s = append(s, fmt.Sprintf("%d:%s", g.GetIndex(), shortUUIDs(g.GetMigUuid())))
		}
	}
	return strings.Join(s, ",")
}

// assignedGPUs returns GPUs as gpus does, MIG devices by index and profile: "0,1:2 (1g.10gb)"; "none" if there are none.
func assignedGPUs(gpus []*controllerv1.AssignedGpu) string {
	var s []string
	for _, g := range gpus {
		text := strconv.Itoa(int(g.GetIndex()))
		mig := g.GetMig()
		switch {
		case g.GetIndex() < 0:
			text = "?"
		case mig == nil:
		case mig.GetIndex() < 0:
			text += fmt.Sprintf(":instance %d/%d", mig.GetGpuInstanceId(), mig.GetComputeInstanceId())
		default:
			text += fmt.Sprintf(":%d", mig.GetIndex())
		}
		if mig.GetProfile() != "" {
			text += " (" + mig.GetProfile() + ")"
		}
		s = append(s, text)
	}
	if len(s) == 0 {
		return "none"
	}
	return strings.Join(s, ",")
}

var uuids = regexp.MustCompile(`((?:GPU|MIG)-[0-9a-f]{8})-[0-9a-f-]+`)

// shortUUIDs cuts the UUIDs in a text to what tells them apart on one node.
func shortUUIDs(s string) string { return uuids.ReplaceAllString(s, "$1") }

// gpuText names GPUs that [gpus] has listed: "no GPU", "GPU 0", "GPUs 0,1".
func gpuText(list string) string {
	switch {
	case list == "" || list == "none":
		return "no GPU"
	case strings.Contains(list, ","):
		return "GPUs " + list
	default:
		return "GPU " + list
	}
}

// utc shows a time to the second, in UTC as the logs have it; empty if there is none.
func utc(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02 15:04:05Z")
}

// elapsed shows how long something took, or takes until now if it has no end; empty if it has not begun.
func elapsed(start, end *timestamppb.Timestamp, now time.Time) string {
	if start == nil {
		return ""
	}
	if end != nil {
		now = end.AsTime()
	}
	return duration(now.Sub(start.AsTime()))
}

func duration(d time.Duration) string {
	d = max(d, 0)
	if d < time.Minute {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func stateColor(s typev1.ContainerState) output.Color {
	switch s {
	case typev1.ContainerState_CONTAINER_STATE_RUNNING:
		return output.Good
	case typev1.ContainerState_CONTAINER_STATE_STOPPED, typev1.ContainerState_CONTAINER_STATE_UNSPECIFIED:
		return output.Faint
	default:
		return output.Warn
	}
}
