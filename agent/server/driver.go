package server

import (
	"context"
	"encoding/hex"
	"strings"

	"google.golang.org/protobuf/types/known/timestamppb"

	"phoenix.internal/agent/container"
	"phoenix.internal/agent/driver"
	"phoenix.internal/agent/gpu"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

const (
	maxURLBytes      = 2048
	maxExpectedUUIDs = 256
)

type driverServer struct {
	agentv1.UnimplementedDriverServiceServer
	node  *Node
	execs *execServer // with which what goes on in containers shares the limits
}

func (s *driverServer) GetDriver(ctx context.Context, req *agentv1.GetDriverRequest) (*agentv1.GetDriverResponse, error) {
	loaded, err := s.loaded(ctx)
	if err != nil {
		return nil, err
	}
	resp := &agentv1.GetDriverResponse{Node: &typev1.NodeDriver{LoadedVersion: loaded, LibraryVersion: driver.LibraryVersion()}}
	if req.GetDiskVersion() {
		if resp.Node.DiskVersion, err = driver.DiskVersion(ctx); err != nil {
			return nil, err
		}
	}
	if req.GetCtid() == 0 {
		return resp, nil
	}
	err = s.inside(ctx, req.GetCtid(), "", func(instance string) error {
		state, err := s.node.Drivers.Inspect(ctx, req.GetCtid())
		resp.Container = containerDriverOf(req.GetCtid(), instance, state)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *driverServer) FetchInstaller(req *agentv1.FetchInstallerRequest, stream agentv1.DriverService_FetchInstallerServer) error {
	ctx := stream.Context()
	version, err := s.versionOf(ctx, req.GetVersion())
	if err != nil {
		return err
	}
	sum := strings.ToLower(req.GetSha256())
	if b, err := hex.DecodeString(sum); err != nil || len(b) != 0 && len(b) != 32 {
		return invalid("sha256", "%.80q is no SHA-256 in hex", req.GetSha256())
	}
	if len(req.GetUrl()) > maxURLBytes {
		return invalid("url", "%d bytes are more than %d", len(req.GetUrl()), maxURLBytes)
	}
	entry, err := s.node.Drivers.Cache.Fetch(ctx, driver.Request{Version: version, URL: req.GetUrl(), SHA256: sum}, func(p driver.Progress) error {
		return stream.Send(&agentv1.FetchInstallerResponse{Message: &agentv1.FetchInstallerResponse_Progress{Progress: driverProgressOf(p)}})
	})
	if err != nil {
		return err
	}
	s.node.Log.Info("installer fetched", "version", entry.Version, "url", entry.URL, "sha256", entry.SHA256, "peer", caller(ctx), "request_id", requestID(ctx))
	return stream.Send(&agentv1.FetchInstallerResponse{Message: &agentv1.FetchInstallerResponse_Installer{Installer: installerOf(entry)}})
}

func (s *driverServer) ListInstallers(ctx context.Context, _ *agentv1.ListInstallersRequest) (*agentv1.ListInstallersResponse, error) {
	kept, err := s.kept(ctx)
	if err != nil {
		return nil, err
	}
	entries, err := s.node.Drivers.Cache.List(kept...)
	if err != nil {
		return nil, err
	}
	resp := &agentv1.ListInstallersResponse{}
	for _, e := range entries {
		resp.Installers = append(resp.Installers, installerOf(e))
	}
	return resp, nil
}

func (s *driverServer) PruneInstallers(ctx context.Context, _ *agentv1.PruneInstallersRequest) (*agentv1.PruneInstallersResponse, error) {
	kept, err := s.kept(ctx)
	if err != nil {
		return nil, err
	}
	removed, err := s.node.Drivers.Cache.Prune(kept...)
	if err != nil {
		return nil, err
	}
	return &agentv1.PruneInstallersResponse{Versions: removed}, nil
}

func (s *driverServer) InstallDriver(req *agentv1.InstallDriverRequest, stream agentv1.DriverService_InstallDriverServer) error {
	ctx := stream.Context()
	version, err := s.versionOf(ctx, req.GetVersion())
	if err != nil {
		return err
	}
	result := &agentv1.InstallDriverResult{}
	err = s.inside(ctx, req.GetCtid(), req.GetInstance(), func(instance string) error {
		state, installed, err := s.node.Drivers.Install(ctx, req.GetCtid(), driver.Options{
			Version: version, Graphics: req.GetGraphics(), Reinstall: req.GetReinstall(),
		}, func(p driver.Progress) error {
			return stream.Send(&agentv1.InstallDriverResponse{Message: &agentv1.InstallDriverResponse_Progress{Progress: driverProgressOf(p)}})
		})
		s.log(ctx, req.GetCtid(), version, "driver installed", installed, err)
		result.Driver, result.Installed = containerDriverOf(req.GetCtid(), instance, state), installed
		return err
	})
	if err != nil {
		return err
	}
	return stream.Send(&agentv1.InstallDriverResponse{Message: &agentv1.InstallDriverResponse_Result{Result: result}})
}

func (s *driverServer) RemoveDriver(ctx context.Context, req *agentv1.RemoveDriverRequest) (*agentv1.RemoveDriverResponse, error) {
	resp := &agentv1.RemoveDriverResponse{}
	err := s.inside(ctx, req.GetCtid(), req.GetInstance(), func(instance string) error {
		state, err := s.node.Drivers.Remove(ctx, req.GetCtid())
		s.log(ctx, req.GetCtid(), "", "driver removed", true, err)
		resp.Driver = containerDriverOf(req.GetCtid(), instance, state)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

func (s *driverServer) VerifyDriver(ctx context.Context, req *agentv1.VerifyDriverRequest) (*agentv1.VerifyDriverResponse, error) {
	if len(req.GetUuids()) > maxExpectedUUIDs {
		return nil, invalid("uuids", "%d are more than %d", len(req.GetUuids()), maxExpectedUUIDs)
	}
	loaded, err := s.versionOf(ctx, "")
	if err != nil {
		return nil, err
	}
	resp := &agentv1.VerifyDriverResponse{}
	err = s.inside(ctx, req.GetCtid(), req.GetInstance(), func(string) error {
		v, err := s.node.Drivers.Verify(ctx, req.GetCtid(), loaded, req.GetUuids())
		resp.Check = driverCheckOf(req.GetCtid(), v)
		return err
	})
	if err != nil {
		return nil, err
	}
	return resp, nil
}

// inside does something in a container that runs, in the instance that the caller means if it names one.
func (s *driverServer) inside(ctx context.Context, ctid int32, instance string, fn func(instance string) error) error {
	if err := checkCTID(ctid); err != nil {
		return err
	}
	if len(instance) > maxInstanceBytes {
		return invalid("instance", "%d bytes are more than %d", len(instance), maxInstanceBytes)
	}
	leave, err := s.execs.enter(ctid)
	if err != nil {
		return err
	}
	defer leave()
	running, err := s.node.Containers.Running(ctx, ctid)
	if err != nil {
		return &ctidError{ctid, err}
	}
	if instance != "" && instance != running.Instance {
		return &container.InstanceError{CTID: ctid, Got: running.Instance}
	}
	if err := fn(running.Instance); err != nil {
		return ofCTID(ctid, err)
	}
	// lxc-attach finds the container by its number, so that only a look before and one after it tell.
	after, err := s.node.Containers.Runtime.Observe(ctx, ctid, nil)
	if err != nil {
		return &ctidError{ctid, err}
	}
	if after.Instance != running.Instance {
		return &container.InstanceError{CTID: ctid, Got: after.Instance}
	}
	return nil
}

// loaded is the version of the node's loaded module; empty if it is not loaded.
func (s *driverServer) loaded(ctx context.Context) (string, error) {
	inv, err := s.node.Containers.GPUs.Scan(ctx)
	if err != nil {
		return "", err
	}
	return inv.DriverVersion, nil
}

// versionOf is the version that a request means.
func (s *driverServer) versionOf(ctx context.Context, version string) (string, error) {
	if version == "" {
		var err error
		if version, err = s.loaded(ctx); err != nil {
			return "", err
		}
		if version == "" {
			return "", gpu.ErrDriverNotLoaded
		}
	}
	if err := driver.CheckVersion(version); err != nil {
		return "", invalid("version", "%v", err)
	}
	return version, nil
}

// kept are the versions that stay in the cache: a container started anew may need the one, and all will need the other
// after the next boot.
func (s *driverServer) kept(ctx context.Context) ([]string, error) {
	loaded, err := s.loaded(ctx)
	if err != nil {
		return nil, err
	}
	disk, err := driver.DiskVersion(ctx)
	return []string{loaded, disk}, err
}

func (s *driverServer) log(ctx context.Context, ctid int32, version, what string, changed bool, err error) {
	if err == nil && !changed {
		return
	}
	attrs := []any{"ctid", ctid, "version", version, "peer", caller(ctx), "request_id", requestID(ctx)}
	if err != nil {
		what = strings.Replace(what, "driver ", "driver not ", 1)
		attrs = append(attrs, "err", err)
	}
	s.node.Log.Info(what, attrs...)
}

func containerDriverOf(ctid int32, instance string, s driver.State) *typev1.ContainerDriver {
	out := &typev1.ContainerDriver{
		Ctid: ctid, Instance: instance, Version: s.Version, CudaVersion: s.CUDA, Graphics: s.Graphics,
		FreeDiskMib: s.FreeDiskMiB, FreeMemoryMib: s.FreeMemoryMiB,
		Libc: map[driver.Libc]typev1.Libc{
			driver.NoLibc: typev1.Libc_LIBC_NONE, driver.Glibc: typev1.Libc_LIBC_GLIBC, driver.Musl: typev1.Libc_LIBC_MUSL,
		}[s.Libc],
		State: map[driver.Kind]typev1.DriverState{
			driver.Absent: typev1.DriverState_DRIVER_STATE_NONE, driver.Complete: typev1.DriverState_DRIVER_STATE_INSTALLED,
			driver.Incomplete: typev1.DriverState_DRIVER_STATE_INCOMPLETE,
		}[s.Kind],
	}
	for _, soname := range s.Broken {
		out.BrokenSonames = append(out.BrokenSonames, text(soname))
	}
	for _, name := range s.Packages {
		out.Packages = append(out.Packages, text(name))
	}
	return out
}

func driverProgressOf(p driver.Progress) *typev1.DriverProgress {
	return &typev1.DriverProgress{DoneBytes: p.Done, TotalBytes: p.Total, Phase: map[driver.Phase]typev1.DriverPhase{
		driver.Download: typev1.DriverPhase_DRIVER_PHASE_DOWNLOAD, driver.Verify: typev1.DriverPhase_DRIVER_PHASE_VERIFY,
		driver.Extract: typev1.DriverPhase_DRIVER_PHASE_EXTRACT, driver.Copy: typev1.DriverPhase_DRIVER_PHASE_COPY,
		driver.Install: typev1.DriverPhase_DRIVER_PHASE_INSTALL, driver.Check: typev1.DriverPhase_DRIVER_PHASE_CHECK,
	}[p.Phase]}
}

func installerOf(e driver.Entry) *typev1.Installer {
	return &typev1.Installer{
		Version: e.Version, Url: text(e.URL), Sha256: e.SHA256, RunfileBytes: e.Bytes, ExtractedBytes: e.TreeBytes,
		FetchTime: timestamppb.New(e.Fetched), InUse: e.InUse,
	}
}

func driverCheckOf(ctid int32, v driver.Verdict) *typev1.DriverCheck {
	out := &typev1.DriverCheck{
		Ctid: ctid, Ok: len(v.Problems) == 0, SmiVersion: v.SMIVersion, SmiError: v.SMIError,
		Uuids: v.UUIDs, MissingUuids: v.Missing, UnexpectedUuids: v.Unexpected, CudaResult: v.CUDAResult,
		Cuda: map[driver.CUDACheck]typev1.CudaCheck{
			driver.CUDANoLibrary: typev1.CudaCheck_CUDA_CHECK_NO_LIBRARY, driver.CUDANotRun: typev1.CudaCheck_CUDA_CHECK_NOT_RUN,
			driver.CUDARan: typev1.CudaCheck_CUDA_CHECK_RAN,
		}[v.CUDA],
	}
	for _, p := range v.Problems {
		out.Problems = append(out.Problems, text(p))
	}
	return out
}
