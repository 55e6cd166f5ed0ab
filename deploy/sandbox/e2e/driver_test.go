package e2e_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"phoenix.internal/deploy/sandbox/runfile"
	"phoenix.internal/deploy/sandbox/sandboxtest"
	agentv1 "phoenix.internal/gen/phoenix/agent/v1"
	typev1 "phoenix.internal/gen/phoenix/type/v1"
)

// The versions of the sandbox's loaded module, and of an older one.
const (
	loadedDriver = "580.105.08"
	olderDriver  = "470.256.02"
)

// A driverWorld is one node whose agent may fetch installers from a server of the test.
type driverWorld struct {
	*world
	n      *sandboxtest.Node
	server *runfile.Server
	url    string // of the directory
	client agentv1.DriverServiceClient
	gpus   []runfile.GPU
}

func newDriverWorld(t *testing.T) *driverWorld {
	t.Helper()
	w := &driverWorld{world: &world{Sandbox: sandboxtest.Up(t, sandboxtest.Options{}), t: t}, server: &runfile.Server{}}
	w.n = w.Node(1)
	w.nodes = []*sandboxtest.Node{w.n}
	lis, err := net.Listen("tcp", net.JoinHostPort(w.n.Gateway, "0"))
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: w.server}
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	t.Cleanup(func() {
		server.Close()
		<-served
	})
	w.url = fmt.Sprintf("http://%s/", lis.Addr())
	config, err := os.OpenFile(filepath.Join(w.n.Dir(), "etc-phoenix", "agent.yaml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer config.Close()
	if _, err := fmt.Fprintf(config, "driver_sources: [%q, /etc/phoenix/]\n", w.url); err != nil {
		t.Fatal(err)
	}
	for i, g := range w.n.GPUs {
		w.gpus = append(w.gpus, runfile.GPU{Minor: g.Minor, Model: g.Model, UUID: w.n.GPUs[i].UUID})
	}
	w.n.StartAgent()
	tlsConfig, err := w.ClientTLS(w.n.Name)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("passthrough:///"+w.n.AgentAddress(), grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	w.client = agentv1.NewDriverServiceClient(conn)
	return w
}

// put makes a runfile that the server has, and returns the request for it.
func (w *driverWorld) put(o runfile.Options) *agentv1.FetchInstallerRequest {
	o.Loaded, o.GPUs = loadedDriver, w.gpus
	b, version := runfile.New(o), o.Version
	w.server.Put(runfile.Name(version), b)
	return &agentv1.FetchInstallerRequest{
		Version: version, Url: w.url + runfile.Name(version), Sha256: fmt.Sprintf("%x", sha256.Sum256(b)),
	}
}

func (w *driverWorld) fetch(ctx context.Context, req *agentv1.FetchInstallerRequest, progress func(*typev1.DriverProgress)) (*typev1.Installer, error) {
	stream, err := w.client.FetchInstaller(ctx, req)
	if err != nil {
		return nil, err
	}
	var got *typev1.Installer
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		if p := resp.GetProgress(); p != nil && progress != nil {
			progress(p)
		}
		got = resp.GetInstaller()
	}
}

func (w *driverWorld) install(ctx context.Context, req *agentv1.InstallDriverRequest, progress func(*typev1.DriverProgress)) (*agentv1.InstallDriverResult, error) {
	stream, err := w.client.InstallDriver(ctx, req)
	if err != nil {
		return nil, err
	}
	var got *agentv1.InstallDriverResult
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return got, nil
		}
		if err != nil {
			return nil, err
		}
		if p := resp.GetProgress(); p != nil && progress != nil {
			progress(p)
		}
		got = resp.GetResult()
	}
}

func (w *driverWorld) driver(t *testing.T, ctid int32) *typev1.ContainerDriver {
	t.Helper()
	resp, err := w.client.GetDriver(t.Context(), &agentv1.GetDriverRequest{Ctid: ctid})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetContainer()
}

func (w *driverWorld) verify(t *testing.T, ctid int32, uuids ...string) *typev1.DriverCheck {
	t.Helper()
	resp, err := w.client.VerifyDriver(t.Context(), &agentv1.VerifyDriverRequest{Ctid: ctid, Uuids: uuids})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetCheck()
}

// start makes and starts a container with these lines in its conf, with glibc or without.
func (w *driverWorld) start(ctid int32, glibc bool, more ...string) {
	w.t.Helper()
	w.n.Add(ctid, conf(ctid, more...))
	if glibc {
		if err := runfile.AddGlibc(w.root(ctid), 100000); err != nil {
			w.t.Fatal(err)
		}
	}
	w.n.Must("pct", "start", fmt.Sprint(ctid))
}

// root is the root file system of a container as this machine sees it.
func (w *driverWorld) root(ctid int32, path ...string) string {
	return filepath.Join(append([]string{w.n.Dir(), "var-lib-lxc", fmt.Sprint(ctid), "rootfs"}, path...)...)
}

// gpuLines pass the node's GPUs with these indexes through.
func (w *driverWorld) gpuLines(indexes ...int) []string {
	var lines []string
	for _, i := range indexes {
		path := fmt.Sprintf("dev/nvidia%d", w.n.GPUs[i].Minor)
		lines = append(lines, fmt.Sprintf("lxc.mount.entry: /%s %s none bind,optional,create=file 0 0", path, path))
	}
	return lines
}

// reasonOf is the reason of a failed call, and its metadata.
func reasonOf(err error) (string, map[string]string) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason(), info.GetMetadata()
		}
	}
	return status.Convert(err).Code().String(), nil
}

// files are the files in a container that a driver or an installation of one has left.
func (w *driverWorld) files(ctid int32) []string {
	out, _, _ := w.n.Attach(ctid, "ls -d /usr/lib/*/*nvidia* /usr/lib/*/*cuda* /usr/lib/*/*nvcuvid* /usr/bin/nvidia-* /var/lib/nvidia /var/lib/phoenix/driver/* 2>/dev/null")
	return strings.Fields(out)
}

// TestDriver installs, verifies, replaces and removes the driver of real containers.
func TestDriver(t *testing.T) {
	t.Parallel()
	w := newDriverWorld(t)
	fetched := w.put(runfile.Options{Version: loadedDriver, Padding: 1 << 20})
	older := w.put(runfile.Options{Version: olderDriver})
	uuid := func(i int) string { return w.n.GPUs[i].UUID }

	w.start(901, true, w.gpuLines(0)...)
	if d := w.driver(t, 901); d.GetLibc() != typev1.Libc_LIBC_GLIBC || d.GetState() != typev1.DriverState_DRIVER_STATE_NONE || d.GetVersion() != "" {
		t.Fatalf("a container without a driver: %v", d)
	}
	_, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901}, nil)
	if reason, md := reasonOf(err); reason != "INSTALLER_NOT_CACHED" || md["version"] != loadedDriver {
		t.Errorf("install what has not been fetched: %v", err)
	}
	if c := w.verify(t, 901, uuid(0)); c.GetOk() || len(c.GetMissingUuids()) != 1 {
		t.Errorf("verify without a driver: %v", c)
	}
	if _, err := w.fetch(t.Context(), fetched, nil); err != nil {
		t.Fatal(err)
	}
	var phases []typev1.DriverPhase
	result, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901}, func(p *typev1.DriverProgress) {
		phases = append(phases, p.GetPhase())
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := result.GetDriver(); !result.GetInstalled() || d.GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED || d.GetVersion() != loadedDriver || d.GetCudaVersion() != loadedDriver {
		t.Errorf("installed: %v", result)
	}
	if want := []typev1.DriverPhase{typev1.DriverPhase_DRIVER_PHASE_COPY, typev1.DriverPhase_DRIVER_PHASE_INSTALL, typev1.DriverPhase_DRIVER_PHASE_CHECK}; !slices.Equal(slices.Compact(phases), want) {
		t.Errorf("phases %v, want %v", phases, want)
	}
	if c := w.verify(t, 901, uuid(0)); !c.GetOk() || c.GetSmiVersion() != loadedDriver || !slices.Equal(c.GetUuids(), []string{uuid(0)}) || c.GetCuda() != typev1.CudaCheck_CUDA_CHECK_RAN || c.GetCudaResult() != 0 {
		t.Errorf("verify: %v", c)
	}
	if c := w.verify(t, 901, uuid(1)); c.GetOk() || !slices.Equal(c.GetMissingUuids(), []string{uuid(1)}) || !slices.Equal(c.GetUnexpectedUuids(), []string{uuid(0)}) {
		t.Errorf("verify with another GPU: %v", c)
	}
	if result, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901}, nil); err != nil || result.GetInstalled() {
		t.Errorf("install what is there: %v, %v; want nothing done", result, err)
	}

	t.Run("CUDA that fails", func(t *testing.T) {
		library := w.root(901, "usr/lib/x86_64-linux-gnu/libcuda.so."+loadedDriver)
		whole, err := os.ReadFile(library)
		if err != nil {
			t.Skipf("no libraries for this machine in the container: %v", err)
		}
		defer w.write(t, library, whole)
		for _, test := range []struct {
			name, problem string
			library       []byte
			result        int32
		}{
			{"unknown error, from a library that uses glibc", "cuInit returned 999 (unknown error", compiled(t, "libcuda.so.1", `
				#include <pthread.h>
				#include <stdlib.h>
				#include <string.h>
				static __thread int local = 990;
				static void *work(void *p) { *(int *)p += local; return p; }
				int cuInit(unsigned flags) {
					int *n = malloc(sizeof *n);
					pthread_t t;
					*n = strlen("nine chars") - 1;
					if (pthread_create(&t, 0, work, n) || pthread_join(t, 0)) return 1;
					return *n + (int)flags;
				}`), 999},
			{"not a library", "cuInit of libcuda.so.1 cannot be called", []byte("nothing"), 0},
		} {
			t.Run(test.name, func(t *testing.T) {
				w.write(t, library, test.library)
				c := w.verify(t, 901, uuid(0))
				if c.GetOk() || c.GetCudaResult() != test.result || !slices.ContainsFunc(c.GetProblems(), func(p string) bool { return strings.HasPrefix(p, test.problem) }) {
					t.Errorf("got %v, want %q", c, test.problem)
				}
			})
		}
	})
	t.Run("nvidia-smi that is a trap", func(t *testing.T) {
		smi := w.root(901, "usr/bin/nvidia-smi")
		whole, err := os.ReadFile(smi)
		if err != nil {
			t.Fatal(err)
		}
		defer w.write(t, smi, whole)
		for _, test := range []struct{ name, script, problem string }{
			{"it prints without end", "exec yes", "nvidia-smi -L: more than 256 KiB of output"},
			{"it speaks to terminals", `printf '\033]0;x\007' >&2; exit 3`, "nvidia-smi -L: status 3: ?]0;x?"},
			{"it makes up GPUs", `for n in 1 2 3 4 5 6 7 8 9; do echo "GPU $n: x (UUID: GPU-$n)"; done`,
				"nvidia-smi lists GPU-1, GPU-2, GPU-3, GPU-4, GPU-5, GPU-6, GPU-7, GPU-8 and 1 more, which the container should not have"},
			{"it is a FIFO", "", "nvidia-smi -L: "},
		} {
			w.write(t, smi, []byte("#!/bin/sh\n"+test.script+"\n"))
			if test.script == "" {
				w.inContainer(t, 901, "mv /usr/bin/nvidia-smi /root && mkfifo -m 755 /usr/bin/nvidia-smi")
			}
			c := w.verify(t, 901, uuid(0))
			if c.GetOk() || !slices.ContainsFunc(c.GetProblems(), func(p string) bool { return strings.HasPrefix(p, test.problem) }) {
				t.Errorf("%s: got %q, want %q", test.name, c.GetProblems(), test.problem)
			}
			if test.script == "" {
				w.inContainer(t, 901, "mv /root/nvidia-smi /usr/bin")
			}
		}
	})
	t.Run("downgrade and upgrade", func(t *testing.T) {
		if _, err := w.fetch(t.Context(), older, nil); err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{olderDriver, loadedDriver} {
			result, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 901, Version: version}, nil)
			if d := result.GetDriver(); err != nil || d.GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED || d.GetVersion() != version {
				t.Errorf("install %s: %v, %v", version, result, err)
			}
			c := w.verify(t, 901, uuid(0))
			if c.GetOk() != (version == loadedDriver) {
				t.Errorf("verify %s: %v", version, c)
			}
		}
	})
	t.Run("remove", func(t *testing.T) {
		resp, err := w.client.RemoveDriver(t.Context(), &agentv1.RemoveDriverRequest{Ctid: 901})
		if err != nil || resp.GetDriver().GetState() != typev1.DriverState_DRIVER_STATE_NONE {
			t.Fatalf("remove: %v, %v", resp, err)
		}
		if got, want := w.files(901), []string{"/var/lib/phoenix/driver/lock"}; !slices.Equal(got, want) {
			t.Errorf("left behind: %q, want %q", got, want)
		}
		if _, err := w.client.RemoveDriver(t.Context(), &agentv1.RemoveDriverRequest{Ctid: 901}); err != nil {
			t.Errorf("remove what is not there: %v", err)
		}
	})
}

// TestDriverFetch kills the agent while it fetches, and gives it wrong files.
func TestDriverFetch(t *testing.T) {
	t.Parallel()
	w := newDriverWorld(t)
	req := w.put(runfile.Options{Version: loadedDriver, Padding: 1 << 20})
	name, dir := runfile.Name(loadedDriver), filepath.Join(w.n.Dir(), "var-lib-phoenix", "driver", loadedDriver)
	killed := func(t *testing.T, until string, reached func() bool) {
		t.Helper()
		ended := make(chan error, 1)
		go func() {
			_, err := w.fetch(t.Context(), req, nil)
			ended <- err
		}()
		sandboxtest.Eventually(t, until, reached)
		w.n.SignalAgent(syscall.SIGKILL)
		if err := <-ended; err == nil {
			t.Error("the fetch ended well")
		}
		w.n.StartAgent()
	}
	t.Run("killed while it downloads", func(t *testing.T) {
		// Ever farther, each time from where the last one was killed.
		at, sent := int64(0), int64(0)
		for _, more := range []int64{1, 7, 65536, 100_001, 524_288} {
			w.server.Set(runfile.Faults{StallAt: more})
			killed(t, fmt.Sprintf("%d bytes are there", at+more), func() bool {
				info, err := os.Stat(filepath.Join(dir, "runfile.partial"))
				return err == nil && info.Size() == at+more
			})
			asked, n := w.server.Asked()
			want := name
			if at > 0 {
				want = fmt.Sprintf("%s bytes=%d-", name, at)
			}
			if !slices.Equal(asked, []string{want}) {
				t.Errorf("asked for %q, want %q", asked, want)
			}
			at, sent = at+more, sent+n
		}
		w.server.Set(runfile.Faults{})
		installer, err := w.fetch(t.Context(), req, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, n := w.server.Asked(); sent+n != installer.GetRunfileBytes() {
			t.Errorf("%d bytes were sent in all, want each of %d once", sent+n, installer.GetRunfileBytes())
		}
	})
	t.Run("pruned", func(t *testing.T) {
		if resp, err := w.client.PruneInstallers(t.Context(), &agentv1.PruneInstallersRequest{}); err != nil || len(resp.GetVersions()) != 0 {
			t.Errorf("the version of the loaded module: %v, %v", resp, err)
		}
		if _, err := w.fetch(t.Context(), w.put(runfile.Options{Version: olderDriver}), nil); err != nil {
			t.Fatal(err)
		}
		resp, err := w.client.PruneInstallers(t.Context(), &agentv1.PruneInstallersRequest{})
		if err != nil || !slices.Equal(resp.GetVersions(), []string{olderDriver}) {
			t.Errorf("removed %v, %v; want %s", resp, err, olderDriver)
		}
		list, err := w.client.ListInstallers(t.Context(), &agentv1.ListInstallersRequest{})
		if err != nil || len(list.GetInstallers()) != 1 || list.GetInstallers()[0].GetVersion() != loadedDriver || !list.GetInstallers()[0].GetInUse() {
			t.Errorf("left are %v, %v", list, err)
		}
	})
	t.Run("killed while it extracts", func(t *testing.T) {
		req = w.put(runfile.Options{Version: olderDriver, Extract: 1})
		dir = filepath.Join(filepath.Dir(dir), olderDriver)
		killed(t, "it is being extracted", func() bool {
			found, err := filepath.Glob(filepath.Join(dir, "extract-*"))
			return err == nil && len(found) > 0
		})
		w.server.Asked()
		if left, _ := filepath.Glob(filepath.Join(dir, "extract-*")); len(left) != 0 {
			t.Errorf("left behind: %q", left)
		}
		// The kernel ends it with the agent, but after it.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			out, _, _ := w.n.Run("pgrep", "-f", "--", "--extract-only --target /var/lib/phoenix")
			if out == "" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the extraction outlived the agent: %s", out)
			}
		}
		if _, err := w.fetch(t.Context(), req, nil); err != nil {
			t.Fatal(err)
		}
		if asked, _ := w.server.Asked(); len(asked) != 0 {
			t.Errorf("a file that was there was asked for again: %q", asked)
		}
	})
	t.Run("refused", func(t *testing.T) {
		other := w.put(runfile.Options{Version: "570.148.08"})
		for _, test := range []struct {
			name, url, sum, reason string
		}{
			{"wrong checksum", other.GetUrl(), strings.Repeat("0", 64), "INSTALLER_CHECKSUM_MISMATCH"},
			{"no checksum over plain http", other.GetUrl(), "", "INSTALLER_SOURCE_NOT_ALLOWED"},
			{"another host", "https://example.org/" + name, other.GetSha256(), "INSTALLER_SOURCE_NOT_ALLOWED"},
			{"a file of the node", "/etc/shadow", other.GetSha256(), "INSTALLER_SOURCE_NOT_ALLOWED"},
			{"another version in it", req.GetUrl(), req.GetSha256(), "INSTALLER_INVALID"},
			{"no such file", w.url + "nothing.run", other.GetSha256(), "INSTALLER_UNAVAILABLE"},
			{"no checksum", other.GetUrl(), "abc", "INVALID_FIELD"},
		} {
			t.Run(test.name, func(t *testing.T) {
				_, err := w.fetch(t.Context(), &agentv1.FetchInstallerRequest{Version: "570.148.08", Url: test.url, Sha256: test.sum}, nil)
				if reason, _ := reasonOf(err); reason != test.reason {
					t.Errorf("got %v, want %s", err, test.reason)
				}
				if left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), "570.148.08*")); err != nil || len(left) > 0 {
					t.Errorf("left behind: %q, %v", left, err)
				}
			})
		}
	})
}

// TestDriverInContainers installs in many containers at once, in ones where it cannot work, and breaks it off.
func TestDriverInContainers(t *testing.T) {
	t.Parallel()
	w := newDriverWorld(t)
	req := w.put(runfile.Options{Version: loadedDriver, Padding: 4 << 20})
	t.Run("ten at once", func(t *testing.T) {
		var all sync.WaitGroup
		for ctid := int32(901); ctid <= 910; ctid++ {
			w.start(ctid, true, w.gpuLines(0, 1)...)
			all.Go(func() {
				if _, err := w.fetch(t.Context(), req, nil); err != nil {
					t.Errorf("fetch for %d: %v", ctid, err)
				}
				r, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: ctid}, nil)
				if err != nil || r.GetDriver().GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED {
					t.Errorf("install in %d: %v, %v", ctid, r, err)
				}
				if c := w.verify(t, ctid, w.n.GPUs[0].UUID, w.n.GPUs[1].UUID); !c.GetOk() {
					t.Errorf("verify %d: %v", ctid, c)
				}
			})
		}
		all.Wait()
		if asked, _ := w.server.Asked(); len(asked) != 1 {
			t.Errorf("asked for the file %d times, want once: %q", len(asked), asked)
		}
	})
	t.Run("refused before anything is done", func(t *testing.T) {
		w.start(921, false)
		w.start(922, false)
		w.start(923, true)
		w.start(924, true)
		w.start(925, true)
		// As lxcfs shows it.
		w.inContainer(t, 924, "printf 'MemTotal: 131072 kB\\nMemAvailable: 102400 kB\\n' >/tmp/meminfo && mount -o bind /tmp/meminfo /proc/meminfo")
		w.inContainer(t, 925, "mkdir /tmp/usr && mount -t tmpfs -o size=32m none /tmp/usr && cp -a /usr/. /tmp/usr && mount -o bind /tmp/usr /usr")
		w.inContainer(t, 922, "mkdir -p /lib && touch /lib/ld-musl-x86_64.so.1")
		w.inContainer(t, 923, `mkdir -p /var/lib/dpkg && printf 'Package: libc6\nStatus: install ok installed\n\nPackage: libnvidia-compute-580\nStatus: install ok installed\n\nPackage: nvidia-utils-550\nStatus: deinstall ok config-files\n' >/var/lib/dpkg/status`)
		for _, test := range []struct {
			name   string
			ctid   int32
			reason string
			key    string
			value  string
		}{
			{"no C library", 921, "LIBC_NOT_SUPPORTED", "libc", "none"},
			{"musl", 922, "LIBC_NOT_SUPPORTED", "libc", "musl"},
			{"packages of the distribution", 923, "DRIVER_PACKAGED", "packages", "libnvidia-compute-580"},
			{"little memory", 924, "CONTAINER_TOO_SMALL", "free_mib", "100"},
			{"little disk", 925, "CONTAINER_TOO_SMALL", "resource", "disk"},
		} {
			t.Run(test.name, func(t *testing.T) {
				_, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: test.ctid}, nil)
				if reason, md := reasonOf(err); reason != test.reason || md[test.key] != test.value {
					t.Errorf("got %v %v, want %s with %s", err, md, test.reason, test.value)
				}
				if left := w.files(test.ctid); len(left) != 0 {
					t.Errorf("left behind: %q", left)
				}
			})
		}
	})
	t.Run("broken off", func(t *testing.T) {
		w.start(931, true)
		half := func() bool {
			_, _, code := w.n.Attach(931, "[ ! -e /usr/bin/nvidia-smi ] && [ $(ls /usr/lib/*/*.so."+loadedDriver+" | wc -l) = 3 ]")
			return code == 0
		}
		for _, test := range []struct {
			name string
			stop func(cancel func())
		}{
			{"by its caller", func(cancel func()) { cancel() }},
			{"by the agent's death", func(func()) {
				w.n.SignalAgent(syscall.SIGKILL)
				w.n.StartAgent()
			}},
			{"by the container's end", func(func()) {
				w.n.Must("pct", "stop", "931")
				w.n.Must("pct", "start", "931")
			}},
		} {
			t.Run(test.name, func(t *testing.T) {
				w.inContainer(t, 931, "echo hang >/etc/stand-in-installer")
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended := make(chan error, 1)
				go func() {
					_, err := w.install(ctx, &agentv1.InstallDriverRequest{Ctid: 931, Reinstall: true}, nil)
					ended <- err
				}()
				sandboxtest.Eventually(t, "half of it is there", half)
				test.stop(cancel)
				if err := <-ended; err == nil {
					t.Error("the installation ended well")
				}
				sandboxtest.Eventually(t, "the installer ends", func() bool {
					_, _, code := w.n.Attach(931, "ps | grep -q '[n]vidia-installer.*--silent'")
					return code != 0
				})
				if d := w.driver(t, 931); d.GetState() != typev1.DriverState_DRIVER_STATE_INCOMPLETE {
					t.Errorf("half of it is there, and it is %v", d)
				}
				if test.name != "by the container's end" { // then nobody is left who could
					sandboxtest.Eventually(t, "the temporary files go", func() bool {
						_, _, code := w.n.Attach(931, "[ ! -e /var/lib/phoenix/driver/work ]")
						return code == 0
					})
				}
				r, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 931}, nil)
				if err != nil || !r.GetInstalled() || r.GetDriver().GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED {
					t.Errorf("repaired: %v, %v", r, err)
				}
				if out, _, _ := w.n.Attach(931, "ls -A /var/lib/phoenix/driver"); out != "lock\n" {
					t.Errorf("left behind: %q", out)
				}
			})
		}
	})
	t.Run("the installer fails", func(t *testing.T) {
		for _, wrong := range []string{"fail", "half"} {
			w.inContainer(t, 931, "echo "+wrong+" >/etc/stand-in-installer")
			_, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 931, Reinstall: true}, nil)
			want := map[string]string{"fail": "ERROR: as /etc/stand-in-installer says", "half": "ERROR: half of it is there"}[wrong]
			if reason, _ := reasonOf(err); reason != "DRIVER_INSTALL_FAILED" || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want DRIVER_INSTALL_FAILED with %q", wrong, err, want)
			}
			if out, _, _ := w.n.Attach(931, "ls -A /var/lib/phoenix/driver | sort | tr '\\n' ' '"); out != "lock unfinished.json " {
				t.Errorf("%s: left behind: %q", wrong, out)
			}
		}
		if r, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 931}, nil); err != nil || !r.GetInstalled() {
			t.Errorf("repaired: %v, %v", r, err)
		}
		w.inContainer(t, 931, "ln -sf libcuda.so.1 /usr/lib/*/libnvidia-cfg.so.1")
		if d := w.driver(t, 931); d.GetState() != typev1.DriverState_DRIVER_STATE_INSTALLED {
			t.Errorf("a link to a library of the same version: %v", d)
		}
		w.inContainer(t, 931, "rm /usr/lib/*/libcuda.so.1")
		if d := w.driver(t, 931); d.GetState() != typev1.DriverState_DRIVER_STATE_INCOMPLETE || !slices.Equal(d.GetBrokenSonames(), []string{"libcuda.so.1", "libnvidia-cfg.so.1"}) {
			t.Errorf("without libcuda.so.1: %v", d)
		}
	})
	t.Run("not ours to remove", func(t *testing.T) {
		w.inContainer(t, 931, "rm /usr/bin/nvidia-installer")
		_, err := w.client.RemoveDriver(t.Context(), &agentv1.RemoveDriverRequest{Ctid: 931})
		if reason, _ := reasonOf(err); reason != "DRIVER_NOT_REMOVABLE" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("another instance", func(t *testing.T) {
		_, err := w.install(t.Context(), &agentv1.InstallDriverRequest{Ctid: 931, Instance: "another"}, nil)
		if reason, _ := reasonOf(err); reason != "INSTANCE_CHANGED" {
			t.Errorf("got %v", err)
		}
	})
}

// write changes the content of a file in a container.
func (w *driverWorld) write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0); err != nil { // it is there
		t.Fatal(err)
	}
}

// compiled is a shared library made of C.
func compiled(t *testing.T, soname, source string) []byte {
	t.Helper()
	gcc, err := exec.LookPath("gcc") // the race detector needs it too
	if err != nil {
		t.Skip("no gcc")
	}
	path := filepath.Join(t.TempDir(), "library")
	cmd := exec.Command(gcc, "-shared", "-fPIC", "-Wl,-soname,"+soname, "-o", path, "-x", "c", "-", "-pthread")
	cmd.Stdin = strings.NewReader(source)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inContainer runs a shell command in a container, which has to succeed.
func (w *driverWorld) inContainer(t *testing.T, ctid int32, script string) {
	t.Helper()
	if _, stderr, code := w.n.Attach(ctid, script); code != 0 {
		t.Fatalf("%s: exit status %d: %s", script, code, stderr)
	}
}
