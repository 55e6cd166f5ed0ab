package driver

import "testing"

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
