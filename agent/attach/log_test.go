package attach_test

import (
	"os"
	"strings"
	"testing"
	"unicode"

	"phoenix.internal/agent/attach"
)

// The logs in testdata are what lxc-attach 5.0.2 of Debian 12 wrote at level NOTICE.
func TestLog(t *testing.T) {
	for _, test := range []struct{ file, want string }{
		{"not-running", "Connection refused - Failed to get init pid; Connection refused - Failed to get attach context"},
		{"privileged", ""},
		{"unprivileged", ""},
		{"survived", ""},
		{"not-found", `No such file or directory - Failed to exec "nosuch"`}, // has status 127
	} {
		t.Run(test.file, func(t *testing.T) {
			b, err := os.ReadFile("testdata/log/" + test.file + ".txt")
			if err != nil {
				t.Fatal(err)
			}
			if got := attach.ParseLog(b); got != test.want {
				t.Errorf("%s\nfailure %q, want %q", b, got, test.want)
			}
		})
	}
}

func FuzzLog(f *testing.F) {
	f.Add([]byte("lxc-attach 901 20261123162932.402 ERROR    attach - ../src/lxc/attach.c:get_attach_context:406 - Connection refused\x1b[2J\n"))
	f.Add([]byte("a b c ERROR"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := attach.ParseLog(b)
		if len(got) > 2000 || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("%q: %q is too long or not printable", b, got)
		}
	})
}
