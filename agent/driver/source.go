package driver

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// DefaultSources are where NVIDIA publishes runfiles.
var DefaultSources = []string{"https://download.nvidia.com/", "https://us.download.nvidia.com/"}

// DefaultURL is where NVIDIA publishes the runfile of a version for this machine.
func DefaultURL(version string) string {
	platform := "Linux-x86_64"
	if runtime.GOARCH == "arm64" {
		platform = "Linux-aarch64"
	}
	return fmt.Sprintf("https://download.nvidia.com/XFree86/%s/%s/NVIDIA-%s-%s.run", platform, version, platform, version)
}

// CheckSource says what is wrong with a prefix of [Cache.Sources].
func CheckSource(prefix string) error {
	if !strings.HasSuffix(prefix, "/") {
		return errors.New("does not end in /")
	}
	_, err := parseSource(prefix + "x")
	return err
}

// A source is where a file comes from: a path on the node, or else a URL.
type source struct {
	text string // as it is compared with the prefixes
	path string
	url  *url.URL
}

// parseSource takes only what has one spelling, so that a comparison of texts decides what is below a prefix.
func parseSource(text string) (source, error) {
	if strings.HasPrefix(text, "/") {
		return localSource(text)
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return source{}, errors.New("is not a URL")
	case u.User != nil, u.RawQuery != "", u.ForceQuery, u.Fragment != "", u.Opaque != "", u.RawPath != "":
		return source{}, errors.New("has more than a scheme, a host and a plain path")
	case u.Scheme == "file" && u.Host == "":
		return localSource(u.Path)
	case u.Scheme != "http" && u.Scheme != "https":
		return source{}, errors.New("is neither http, https nor file, nor an absolute path")
	case u.Host == "" || u.Host != strings.ToLower(u.Host):
		return source{}, errors.New("has no host in lower case")
	case !strings.HasPrefix(u.Path, "/") || path.Clean(u.Path) != u.Path || u.String() != text:
		return source{}, errors.New("its path is not written plainly")
	}
	return source{text: text, url: u}, nil
}

func localSource(p string) (source, error) {
	if !filepath.IsAbs(p) || filepath.Clean(p) != p || strings.ContainsRune(p, 0) {
		return source{}, errors.New("its path is not written plainly")
	}
	return source{text: p, path: p}, nil
}

// resolve finds out where to fetch from. prefix is the allowed prefix that the source has.
func (c *Cache) resolve(text string) (src source, prefix string, err error) {
	if src, err = parseSource(text); err != nil {
		return src, "", &SourceError{URL: text, Why: err.Error()}
	}
	i := slices.IndexFunc(c.Sources, func(p string) bool {
		return strings.HasPrefix(src.text, strings.TrimPrefix(p, "file://"))
	})
	if i < 0 {
		return src, "", &SourceError{URL: text, Allowed: c.Sources}
	}
	return src, strings.TrimPrefix(c.Sources[i], "file://"), nil
}
