package attach

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A user is whom a command runs as, in the container's numbers.
type user struct {
	name, home string // empty if the number has no entry; home then is "/"
	uid, gid   int
	groups     []int
}

// findUser finds NAME, UID, NAME:GROUP or UID:GID in /etc/passwd and /etc/group, as read gives them. A UID without an
// entry needs a GID. Supplementary groups come with a user's own group only, as with docker.
func findUser(spec string, read func(path string) ([]byte, error)) (user, error) {
	passwd, err := read("/etc/passwd")
	if err != nil {
		return user{}, err
	}
	group, err := read("/etc/group")
	if err != nil {
		return user{}, err
	}
	wanted, wantedGroup, grouped := strings.Cut(spec, ":")
	u, known := lookUpUser(passwd, wanted)
	if !known {
		if u.uid, err = parseID(wanted); err != nil {
			return user{}, fmt.Errorf("%q is no user in the container's /etc/passwd", wanted)
		}
		if !grouped {
			return user{}, fmt.Errorf("uid %d has no entry in the container's /etc/passwd, so its group is unknown: give %d:GID", u.uid, u.uid)
		}
		u.home = "/"
	}
	if !grouped {
		u.groups = groupsOf(group, u)
		return u, nil
	}
	if u.gid, known = lookUpGroup(group, wantedGroup); !known {
		if u.gid, err = parseID(wantedGroup); err != nil {
			return user{}, fmt.Errorf("%q is no group in the container's /etc/group", wantedGroup)
		}
	}
	u.groups = []int{u.gid}
	return u, nil
}

// lookUpUser finds a user by name, else by number.
func lookUpUser(passwd []byte, wanted string) (user, bool) {
	var byUID *user
	for fields := range entries(passwd, 7) {
		uid, uidErr := parseID(fields[2])
		gid, gidErr := parseID(fields[3])
		if uidErr != nil || gidErr != nil {
			continue
		}
		u := user{name: fields[0], home: fields[5], uid: uid, gid: gid}
		if fields[0] == wanted {
			return u, true
		}
		if byUID == nil && strconv.Itoa(uid) == wanted {
			byUID = &u
		}
	}
	if byUID == nil {
		return user{}, false
	}
	return *byUID, true
}

func lookUpGroup(group []byte, wanted string) (int, bool) {
	for fields := range entries(group, 4) {
		if gid, err := parseID(fields[2]); err == nil && fields[0] == wanted {
			return gid, true
		}
	}
	return 0, false
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// groupsOf returns the groups that have u as a member, its own first.
func groupsOf(group []byte, u user) []int {
	groups := []int{u.gid}
	for fields := range entries(group, 4) {
		gid, err := parseID(fields[2])
		if err != nil || !slices.Contains(strings.Split(fields[3], ","), u.name) || slices.Contains(groups, gid) {
			continue
		}
		if groups = append(groups, gid); len(groups) == maxGroups {
			break
		}
	}
	return groups
}

// entries yields the lines of a file of the kind of passwd that have so many fields and a name.
func entries(b []byte, fields int) func(yield func([]string) bool) {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(b) {
			f := strings.Split(string(bytes.TrimSuffix(line, []byte("\n"))), ":")
			if len(f) == fields && f[0] != "" && !yield(f) {
				return
			}
		}
	}
}

// parseID parses a UID or GID. The highest number means "none" to the kernel.
func parseID(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n == 1<<32-1 {
		return 0, errors.New("no such number")
	}
	return int(n), nil
}
