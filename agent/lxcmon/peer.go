package lxcmon

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// lxcCgroup finds the parts of a path that LXC makes: for a container's processes lxc/CTID, as Proxmox sets it, or
// lxc.payload.CTID, LXC's own default, with "-1" and so on behind it if a leftover has that name; for its monitor
// lxc.monitor/CTID or lxc.monitor.CTID.
var lxcCgroup = regexp.MustCompile(`/lxc(?:\.(payload|monitor))?[./]([0-9]+)(?:-[0-9]+)?(?:/|$)`)

// inPayload says whether /proc/PID/cgroup shows a process of a container in any hierarchy. The last part that LXC made
// counts, so that it works in a container too.
func inPayload(cgroups []byte) bool {
	for line := range strings.Lines(string(cgroups)) {
		all := lxcCgroup.FindAllStringSubmatch(strings.TrimSuffix(line, "\n"), -1)
		if len(all) == 0 {
			continue
		}
		last := all[len(all)-1]
		if last[1] != "monitor" {
			return true
		}
	}
	return false
}

// ContainerOf returns the CTID of the container whose process /proc/PID/cgroup shows; 0 if it is in none. The first part
// that LXC made counts: what is below that is the container's own making.
func ContainerOf(cgroups []byte) int32 {
	for line := range strings.Lines(string(cgroups)) {
		for _, part := range lxcCgroup.FindAllStringSubmatch(strings.TrimSuffix(line, "\n"), -1) {
			if ctid, err := strconv.ParseInt(part[2], 10, 32); part[1] != "monitor" && err == nil && ctid >= 100 {
				return int32(ctid)
			}
		}
	}
	return 0
}

// unified returns the path in cgroup2, else the last there is.
func unified(cgroups []byte) string {
	path := ""
	for line := range strings.Lines(string(cgroups)) {
		hierarchy, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, path, _ = strings.Cut(rest, ":")
		if hierarchy == "0" {
			return path
		}
	}
	return path
}

// peerInContainer tells the cgroup of a living peer that is in a container: root of a privileged one that has the host's
// network can take a command socket too. The PID of SO_PEERCRED proves nothing, because a daemonised lxc-start, which
// called listen, is dead and its PID may be anybody's by now; a pidfd of the peer (Linux 6.5) is never anybody else's. With
// an older kernel, and for a peer that is dead, the answer is that nothing is known against it.
func peerInContainer(socket int) (pid int, cgroup string) {
	const soPeerPIDFD = 77 // asm-generic/socket.h
	fd, err := unix.GetsockoptInt(socket, unix.SOL_SOCKET, soPeerPIDFD)
	if err != nil {
		return 0, ""
	}
	defer unix.Close(fd)
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(string(info)) {
		if s, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, _ = strconv.Atoi(strings.TrimSpace(s)) // -1: dead
		}
	}
	if pid <= 0 {
		return 0, ""
	}
	if own, err := os.ReadFile("/proc/self/cgroup"); err != nil || inPayload(own) {
		return 0, "" // we are in a container ourselves, and so is everybody else
	}
	cgroups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil || unix.PidfdSendSignal(fd, 0, nil, 0) != nil || !inPayload(cgroups) {
		return 0, ""
	}
	return pid, unified(cgroups)
}
