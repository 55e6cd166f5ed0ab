//go:build cgo

// Command phoenix-nvml tells phoenix-agent what NVIDIA's management library knows; see package nvml. Its argument, if
// there is one, is the path of the library.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	client "phoenix.internal/agent/nvml"
)

func main() {
	library := ""
	switch len(os.Args) {
	case 1:
	case 2:
		library = os.Args[1]
	default:
		fmt.Fprintln(os.Stderr, "phoenix-nvml: it has one argument at most, the path of libnvidia-ml.so.1")
		os.Exit(2)
	}
	// Where memory gets short this process goes first, not the agent, whose memory is limited together with ours.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil {
		fmt.Fprintln(os.Stderr, "phoenix-nvml:", err)
	}
	if err := serve(library); err != nil {
		fmt.Fprintln(os.Stderr, "phoenix-nvml:", err)
		os.Exit(1)
	}
}

// serve answers requests until the input ends. It ends then even if the library does not come back.
func serve(library string) error {
	answers, err := takeOutput()
	if err != nil {
		return err
	}
	requests := make(chan string)
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			requests <- lines.Text()
		}
		os.Exit(0)
	}()
	out := json.NewEncoder(answers)
	for request := range requests {
		if request != client.Request {
			return fmt.Errorf("unknown request %q", request)
		}
		answer := scan(library)
		answer.Last = holdsDriver()
		if err := out.Encode(answer); err != nil || answer.Last {
			return err
		}
	}
	return nil
}

// holdsDriver says whether a device of the driver is still open after the library was shut down.
func holdsDriver() bool {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		// A descriptor that has been closed since is none of the driver's.
		if path, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.Contains(path, "/dev/nvidia") {
			return true
		}
	}
	return err != nil
}

// takeOutput keeps standard output for the answers alone: what the library prints itself goes nowhere.
func takeOutput() (*os.File, error) {
	fd, err := unix.FcntlInt(1, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	if err := unix.Dup3(int(null.Fd()), 1, 0); err != nil {
		return nil, fmt.Errorf("standard output: %w", err)
	}
	return os.NewFile(uintptr(fd), "answers"), nil
}
