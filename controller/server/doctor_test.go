package server_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	controllerv1 "phoenix.internal/gen/phoenix/controller/v1"
	errorv1 "phoenix.internal/gen/phoenix/error/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"

	"phoenix.internal/controller/nodetest"
)

func fault(d *controllerv1.Diagnosis) string {
	if len(d.GetFindings()) == 0 {
		return ""
	}
	return d.GetFindings()[0].GetFault()
}

// What an assignment means, and meant, in all its forms. The agent is one that knows nothing of drivers in containers.
func TestDoctorOfAssignments(t *testing.T) {
	const other = "GPU-99999999-0000-0000-0000-000000000000"
	applied := func(assignment, uuid, pci string) *typev1.Applied {
		return &typev1.Applied{Assignment: assignment, Gpus: []*typev1.AppliedGpu{{Index: 0, Uuid: uuid, PciAddress: pci}}}
	}
	rows := []struct {
		name, assignment string
		gpus             []int32
		applied          *typev1.Applied
		want             string
	}{
		{"by index", "0", []int32{0}, nil, ""},
		{"by two indexes", "0,1", []int32{0, 1}, nil, ""},
		{"by the beginning of a UUID", "GPU-00000001", []int32{1}, nil, ""},
		{"by address", "02:00.0", []int32{1}, nil, ""},
		{"all", "all", []int32{0, 1}, nil, ""},
		{"one that was picked", "any:1", []int32{1}, nil, ""},
		{"more than there are", "any:9", []int32{0, 1}, nil, "no_such_gpu"},
		{"an index that meant a card in a slot that is empty", "0", []int32{0}, applied("0", other, "0000:09:00.0"), "card_gone"},
		{"an index that meant a card that was exchanged", "0", []int32{0}, applied("0", other, "0000:01:00.0"), "gpu_moved"},
		{"an index that was not what was applied", "0", []int32{0}, applied("all", other, "0000:01:00.0"), ""},
		{"an index that the node lacks", "5", nil, nil, "no_such_gpu"},
		{"a UUID that the node lacks", "GPU-99999999", nil, nil, "no_such_gpu"},
		{"a UUID of a card that is gone", "GPU-99999999", nil, applied("GPU-99999999", other, "0000:09:00.0"), "card_gone"},
		{"a slot that is empty", "0000:09:00.0", nil, nil, "card_gone"},
		{"a pick that is gone", "any:3", []int32{0, 1}, applied("any:3", other, "0000:09:00.0"), "card_gone"},
		{"a MIG device of a card that is not divided", "0:1", nil, nil, "mig_off"},
		{"a profile that no card has", "1g.10gb", nil, nil, "no_such_gpu"},
		{"none, though its conf gives one", "none", []int32{0}, nil, "gives_more"},
	}
	agent := &nodetest.Agent{Name: "pve1", GPUs: 2}
	var entries []string
	for i, r := range rows {
		ctid := int32(901 + i)
		agent.Add(ctid, true, r.gpus...)
		agent.Change(ctid, func(c *typev1.Container) { c.Applied = r.applied })
		entries = append(entries, want(int(ctid), r.assignment, ""))
	}
	f := start(t, fleetFile(entries...), agent)
	doctor := controllerv1.NewDoctorServiceClient(f.conn)
	resp, err := doctor.Diagnose(t.Context(), &controllerv1.DiagnoseRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetContainers()) != len(rows) {
		t.Fatalf("got %d containers, want %d", len(resp.GetContainers()), len(rows))
	}
	for i, r := range rows {
		if got := fault(resp.GetContainers()[i]); got != r.want {
			t.Errorf("%s, %q: got %q, want %q: %v", r.name, r.assignment, got, r.want, resp.GetContainers()[i])
		}
	}

	// What this agent cannot tell is not a fault.
	resp, err = doctor.Diagnose(t.Context(), &controllerv1.DiagnoseRequest{Ctids: []int32{901, 901}})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.GetContainers()) != 1 || !resp.GetHealthy() {
		t.Fatalf("got %v, want one that is healthy", resp)
	}
	var links []string
	for _, l := range resp.GetContainers()[0].GetLinks() {
		links = append(links, fmt.Sprintf("%s %d", l.GetLink(), l.GetState()))
	}
	const wantLinks = "agent 1, card 1, driver 1, health 1, device nodes 5, mig 4, assignment 1, conf 1, container 1, devices 1, user space 5, nvidia-smi 4, cuda 4"
	if got := strings.Join(links, ", "); got != wantLinks {
		t.Errorf("links\n%s, want\n%s", got, wantLinks)
	}
}

func TestDoctorFails(t *testing.T) {
	f := start(t, fleetFile(want(901, "0", "")), &nodetest.Agent{Name: "pve1", GPUs: 1})
	doctor := controllerv1.NewDoctorServiceClient(f.conn)
	_, err := doctor.Diagnose(t.Context(), &controllerv1.DiagnoseRequest{Ctids: []int32{99}})
	wantReason(t, "CTID 99", err, codes.InvalidArgument, errorv1.Reason_REASON_INVALID_FIELD, map[string]string{"field": "ctids"})
	if err := os.Remove(f.fleet); err != nil {
		t.Fatal(err)
	}
	_, err = doctor.Diagnose(t.Context(), &controllerv1.DiagnoseRequest{})
	wantReason(t, "no fleet file", err, codes.FailedPrecondition, errorv1.Reason_REASON_FLEET_UNREADABLE, map[string]string{"path": f.fleet})
}
