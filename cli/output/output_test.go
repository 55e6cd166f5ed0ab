package output_test

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"phoenix.internal/cli/output"
)

func TestClean(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{
		{"empty", "", ""},
		{"text", "Köln 日本 a\\b", "Köln 日本 a\\b"},
		{"clear the screen", "\x1b[2J", `\x1b[2J`},
		{"C1 control", "\u009b2J", `\u009b2J`},
		{"line ends", "a\r\nb", `a\x0d\x0ab`},
		{"delete and bell", "\x7f\x07", `\x7f\x07`},
		{"invalid UTF-8", "a\xffb\xc3", `a\xffb\xc3`},
		{"direction", "a\u202eb\u2066", `a\u202eb\u2066`},
		{"zero width", "a\u200bb", `a\u200bb`},
		{"a replacement character is text", "\ufffd", "\ufffd"},
		{"tag character beyond 16 bits", "\U000e0041", `\ue0041`},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := output.Clean(test.in); got != test.want {
				t.Errorf("Clean(%q) = %q, want %q", test.in, got, test.want)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	for _, seed := range []string{"", "a", "\x1b]0;x\x07", "\xff\n\t", "\u202e"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := output.Clean(s)
		if !utf8.ValidString(got) || strings.ContainsFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Errorf("Clean(%q) = %q is not printable", s, got)
		}
		if again := output.Clean(got); again != got {
			t.Errorf("Clean(%q) = %q, and of that %q", s, got, again)
		}
		if lines := output.CleanLines(s); strings.Count(lines, "\n") != strings.Count(s, "\n") {
			t.Errorf("CleanLines(%q) = %q has other lines", s, lines)
		}
	})
}

func TestTable(t *testing.T) {
	table := output.NewTable(false, "CTID", "name", "state")
	table.Row("901", "日本", output.Cell{Text: "in\tsync", Color: output.Good})
	table.Row("910", "a", "")
	table.Row("1")
	var b bytes.Buffer
	if err := table.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := "CTID  NAME  STATE\n" +
		"901   日本  in\\x09sync\n" +
		"910   a     -\n" +
		"1     -     -\n"
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func TestFit(t *testing.T) {
	for _, test := range []struct {
		in      string
		columns int
		want    string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"日本語", 6, "日本語"}, {"日本語", 5, "日本…"}, {"日本語", 4, "日…"},
		{"abc", 1, "…"}, {"abc", 0, ""}, {"abc", -1, ""}, {"", 0, ""},
	} {
		if got := output.Fit(test.in, test.columns); got != test.want {
			t.Errorf("Fit(%q, %d) = %q, want %q", test.in, test.columns, got, test.want)
		}
	}
}

func TestWriteDiff(t *testing.T) {
	var b bytes.Buffer
	err := output.WriteDiff(&b, true, "  ", "old", "new", []byte("a\n\tb\x1b\nc\n"), []byte("a\nc\nd"))
	if err != nil {
		t.Fatal(err)
	}
	want := "  \x1b[1m--- old\x1b[0m\n" +
		"  \x1b[1m+++ new\x1b[0m\n" +
		"  \x1b[36m@@ -1,3 +1,3 @@\x1b[0m\n" +
		"   a\n" +
		"  \x1b[31m-\x1b[0m\t\x1b[31mb\\x1b\x1b[0m\n" +
		"   c\n" +
		"  \x1b[32m+d\x1b[0m\n" +
		"  \x1b[2m\\ No newline at end of file\x1b[0m\n"
	if b.String() != want {
		t.Errorf("got  %q\nwant %q", b.String(), want)
	}
	for _, test := range []struct {
		name, before, after string
		removed, added      int
	}{
		{"as above", "a\n\tb\x1b\nc\n", "a\nc\nd", 1, 1},
		{"equal", "a\n", "a\n", 0, 0},
		{"empty", "", "", 0, 0},
		{"from nothing", "", "a\nb", 0, 2},
		{"to nothing", "a\n\xff\n", "", 2, 0},
		{"the last line feed", "a\nb", "a\nb\n", 1, 1},
		{"what looks like a diff", "--- a\n+++ b\n", "+++ b\n--- a\n", 1, 1},
	} {
		if removed, added := output.CountDiff([]byte(test.before), []byte(test.after)); removed != test.removed || added != test.added {
			t.Errorf("%s: %d lines removed and %d added, want %d and %d", test.name, removed, added, test.removed, test.added)
		}
	}
	b.Reset()
	if err := output.WriteDiff(&b, true, "", "old", "new", []byte("a"), []byte("a")); err != nil || b.Len() > 0 {
		t.Errorf("equal texts: %q, %v", b.String(), err)
	}
}
