package attach

// ParseLog is the reader of lxc-attach's log, for tests that play a container that writes to it.
var ParseLog = parseLog

// FindUser is the launcher's reader of a container's files.
func FindUser(spec string, passwd, group []byte) (uid, gid int, groups []int, err error) {
	u, err := findUser(spec, func(path string) ([]byte, error) {
		if path == "/etc/passwd" {
			return passwd, nil
		}
		return group, nil
	})
	return u.uid, u.gid, u.groups, err
}
