// Package confstore reads and replaces the container confs in /etc/pve as Proxmox itself does: under its lock on the
// CTID, from a temporary file beside the conf, without ever writing in place. What was replaced is kept as a
// revision.
//
// Facts about Proxmox's file system are from pmxcfs.c, memdb.c, dcdb.c and cfs-plug-memdb.c of pve-cluster 9 and
// from Cluster.pm; those about its lock from PVE::LXC::Config and PVE::Tools.
package confstore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// MaxSize is the largest file that Proxmox's file system takes, in bytes (memdb.h).
const MaxSize = 1 << 20

// A Store is the confs of one node. The zero value is the real ones. Its methods may be called concurrently.
//
// Calls into /etc/pve can hang while the cluster re-forms, and cannot be interrupted. A method then returns
// [ErrNoAnswer] after AnswerWait; the call goes on in the background, and an edit keeps its lock until it ends.
type Store struct {
	PVE         string        // root of Proxmox's file system; empty means /etc/pve
	LockDir     string        // directory of Proxmox's locks; empty means /run/lock/lxc
	RevisionDir string        // where replaced confs are kept; empty means /var/lib/phoenix/revisions
	Keep        int           // revisions kept per CTID; 0 means 50
	LockWait    time.Duration // for Proxmox's lock on a CTID; 0 means 10 s, as Proxmox waits
	AnswerWait  time.Duration // for a read, or for a whole replacement; 0 means 15 s
	StopWait    time.Duration // for the end of a stop; 0 means 30 s

	// Settled tells whether Proxmox's post-stop hook, which rewrites the conf of a container without the lock, cannot be at
	// work. Nil means that the caller sees to it.
	Settled func(ctid int32) (bool, error)

	unanswered atomic.Int32 // background calls
}

func (s *Store) pve() string { return orDefault(s.PVE, "/etc/pve") }

// path returns the conf's path. Only confs of this node are ever touched, because the lock is local to the node.
func (s *Store) path(ctid int32) string {
	return filepath.Join(s.confDir(), strconv.Itoa(int(ctid))+".conf")
}

func (s *Store) confDir() string { return filepath.Join(s.pve(), "local", "lxc") }

func orDefault[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// Check tells whether confs can be written and containers started: it wraps [ErrNotMounted] if Proxmox's file
// system is not mounted, [ErrNoQuorum] if the node has no quorum.
func (s *Store) Check() error {
	_, err := answer(s, nil, func(*job) (struct{}, error) { return struct{}{}, s.check(true) })
	return err
}

// check looks where Proxmox looks (Cluster.pm, check_cfs_is_mounted and check_cfs_quorum): without the file system
// /etc/pve is an ordinary directory, without quorum it takes the write bit away.
func (s *Store) check(quorum bool) error {
	info, err := os.Lstat(filepath.Join(s.pve(), "local"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w", s.pve(), ErrNotMounted)
	case err != nil:
		return readError(err)
	case info.Mode()&fs.ModeSymlink == 0:
		return fmt.Errorf("%s: %w", s.pve(), ErrNotMounted)
	case quorum && info.Mode().Perm()&0o200 == 0:
		return fmt.Errorf("%s: %w", s.pve(), ErrNoQuorum)
	}
	return nil
}

// CTIDs returns the containers of this node, ascending.
func (s *Store) CTIDs() ([]int32, error) { return s.guests("lxc") }

// VMs returns the virtual machines of this node, ascending.
func (s *Store) VMs() ([]int32, error) { return s.guests("qemu-server") }

var guestConf = regexp.MustCompile(`^([1-9][0-9]{2,8})\.conf$`)

func (s *Store) guests(kind string) ([]int32, error) {
	return answer(s, nil, func(*job) ([]int32, error) {
		if err := s.check(false); err != nil {
			return nil, err
		}
		entries, err := os.ReadDir(filepath.Join(s.pve(), "local", kind))
		if err != nil {
			return nil, readError(err)
		}
		var ids []int32
		for _, e := range entries {
			if m := guestConf.FindStringSubmatch(e.Name()); m != nil {
				id, err := strconv.ParseInt(m[1], 10, 32)
				if err != nil {
					return nil, err
				}
				ids = append(ids, int32(id))
			}
		}
		slices.Sort(ids)
		return ids, nil
	})
}

// ReadVM returns the bytes of the conf of a virtual machine. It wraps [ErrNotFound] if this node has none of this number.
func (s *Store) ReadVM(vmid int32) ([]byte, error) {
	return answer(s, nil, func(*job) ([]byte, error) {
		if err := s.check(false); err != nil {
			return nil, err
		}
		b, err := readFile(filepath.Join(s.pve(), "local", "qemu-server", strconv.Itoa(int(vmid))+".conf"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("conf of VM %d: %w", vmid, ErrNotFound)
		}
		return b, err
	})
}

// Read returns the bytes of a conf. It wraps [ErrNotFound] if this node has no container of this CTID.
func (s *Store) Read(ctid int32) ([]byte, error) {
	return answer(s, nil, func(*job) ([]byte, error) { return s.read(ctid) })
}

func (s *Store) read(ctid int32) ([]byte, error) {
	if ctid < 100 || ctid > 999999999 {
		return nil, fmt.Errorf("conf of CTID %d: %w", ctid, ErrNotFound)
	}
	if err := s.check(false); err != nil {
		return nil, err
	}
	b, err := readFile(s.path(ctid))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.notFound(ctid)
	}
	return b, err
}

// readFile returns the bytes of a file of at most [MaxSize] bytes.
func readFile(path string) ([]byte, error) {
	f, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return nil, readError(err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, readError(err)
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%s: %w", f.Name(), ErrTooLarge)
	}
	return b, nil
}

// notFound tells a container that is elsewhere, a [*MovedError], from one that is nowhere, [ErrNotFound].
func (s *Store) notFound(ctid int32) error {
	nodes, err := os.ReadDir(filepath.Join(s.pve(), "nodes"))
	if err != nil {
		return readError(err)
	}
	self, err := os.Readlink(filepath.Join(s.pve(), "local"))
	if err != nil {
		return readError(err)
	}
	name := strconv.Itoa(int(ctid)) + ".conf"
	for _, n := range nodes {
		for _, kind := range []string{"lxc", "qemu-server"} {
			if n.Name() == filepath.Base(self) && kind == "lxc" {
				continue
			}
			if _, err := os.Lstat(filepath.Join(s.pve(), "nodes", n.Name(), kind, name)); err == nil {
				return &MovedError{CTID: ctid, Node: n.Name(), VM: kind == "qemu-server"}
			}
		}
	}
	return fmt.Errorf("conf of CTID %d: %w", ctid, ErrNotFound)
}
