// Command citest reads the output of go test -json, prints what failed and one line per package, and fails if a test was
// skipped: in CI everything that a test needs is there, so a skip means that an install step is missing.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

func main() {
	var passed, failed, skipped int
	output := make(map[string][]string) // of tests and packages that have not ended
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Println(in.Text()) // a line of the go command itself
			continue
		}
		key := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			output[key] = append(output[key], e.Output)
		case "pass":
			if e.Test == "" {
				fmt.Printf("ok    %-60s %.1fs\n", e.Package, e.Elapsed)
			} else {
				passed++
			}
			delete(output, key)
		case "fail", "build-fail":
			failed++
			fmt.Printf("FAIL  %s\n%s", key, strings.Join(output[key], ""))
			delete(output, key)
		case "skip":
			if e.Test != "" {
				skipped++
				fmt.Printf("SKIP  %s\n%s", key, strings.Join(output[key], ""))
			}
			delete(output, key)
		}
	}
	if err := in.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "citest:", err)
		os.Exit(1)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	if failed > 0 || skipped > 0 || passed == 0 {
		os.Exit(1)
	}
}
