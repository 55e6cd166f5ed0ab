package confstore

import "golang.org/x/sys/unix"

// Held tells whether somebody holds Proxmox's lock on the conf of ctid: a pct at work, for example. It takes no lock
// itself, so the answer may be old when it arrives.
func (s *Store) Held(ctid int32) bool {
	fd, err := unix.Open(s.lockFile(ctid), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false // nobody has locked it since boot
	}
	defer unix.Close(fd)
	return holder(fd) != 0
}
