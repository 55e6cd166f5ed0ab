package driver

import "testing"

// Answer takes what the process in a container says.
func Answer(lines string, progress func(Progress) error) error {
	_, err := (&answers{progress: progress}).Write([]byte(lines))
	return err
}

// Use holds a version in a cache as an installation does.
func Use(t *testing.T, c *Cache, version string) (release func()) {
	t.Helper()
	_, _, release, err := c.use(version)
	if err != nil {
		t.Fatal(err)
	}
	return release
}

// What decides without looking.
var (
	DPKGPackages = dpkgPackages
	Flags        = flags
	ListedUUIDs  = listedUUIDs
)
