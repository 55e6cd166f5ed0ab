package cli_test

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestDocs goes through the flags and commands that --help shows and the settings that docs/cli.md names, both ways.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	docs := string(b)
	help := run(t, &fake{}, nil, "--help").stdout
	commands, flags, ok := strings.Cut(help, "\nFlags:\n")
	if !ok {
		t.Fatalf("help without flags:\n%s", help)
	}
	names := regexp.MustCompile(`(?m)^  ([a-z]+) {2,}`).FindAllStringSubmatch(commands, -1)
	if len(names) < 14 {
		t.Fatalf("only %d commands in the help:\n%s", len(names), help)
	}
	for _, m := range names {
		if m[1] != "help" && !regexp.MustCompile("`"+m[1]+"[` ]").MatchString(docs) {
			t.Errorf("command %s is not in docs/cli.md", m[1])
		}
	}
	var global []string
	for _, m := range regexp.MustCompile(`(?m)^ +(?:-., )?(--[a-z-]+)`).FindAllStringSubmatch(flags, -1) {
		global = append(global, m[1])
		if m[1] != "--help" && !strings.Contains(docs, "`"+m[1]) {
			t.Errorf("flag %s is not in docs/cli.md", m[1])
		}
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\| `(--[a-z-]+)` \\| `(PHOENIX_[A-Z_]+)` \\|").FindAllStringSubmatch(docs, -1)
	settings(t, "unknown: x\n")
	stderr := real(t, "nodes").stderr
	_, list, _ := strings.Cut(stderr, "The keys are ")
	keys := strings.Split(strings.TrimSuffix(list, ".\n"), ", ")
	var documented []string
	for _, row := range rows {
		documented = append(documented, row[1])
		if want := "PHOENIX_" + strings.ToUpper(strings.ReplaceAll(row[1], ".", "_")); row[3] != want {
			t.Errorf("the variable of %s is %s, docs/cli.md says %s", row[1], want, row[3])
		}
		if !slices.Contains(global, row[2]) {
			t.Errorf("docs/cli.md names %s for %s, which is no flag", row[2], row[1])
		}
	}
	if !slices.Equal(documented, keys) {
		t.Errorf("docs/cli.md documents the keys %q, the program knows %q", documented, keys)
	}
}
