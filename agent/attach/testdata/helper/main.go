// Helper is what the tests of attach run inside containers, linked statically, which a test binary under the race
// detector cannot be.
package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"phoenix.internal/agent/attach"
)

func main() {
	switch os.Args[1] {
	case attach.Argument:
		os.Exit(attach.Main(os.Args[2:]))
	case "produce":
		produce(os.Args[2:])
	case "agent":
		os.Exit(agent(os.Args[2:]))
	case "login":
		if err := attach.AsLogin(); err != nil {
			fmt.Println(err)
		}
		os.Exit(0)
	}
	os.Exit(99)
}

// produce writes pseudo-random bytes to stdout and stderr at once, each followed by their SHA-256, and ends with a status
// or by a signal: SEED, bytes to stdout, bytes to stderr, status, signal (0: none).
func produce(args []string) {
	n := make([]int64, len(args))
	for i, a := range args {
		v, err := strconv.ParseInt(a, 10, 64)
		if err != nil {
			panic(err)
		}
		n[i] = v
	}
	var both sync.WaitGroup
	for i, f := range []*os.File{os.Stdout, os.Stderr} {
		both.Go(func() {
			hash := sha256.New()
			var seed [32]byte
			seed[0], seed[1], seed[2], seed[3] = byte(n[0]), byte(n[0]>>8), byte(n[0]>>16), byte(i)
			if _, err := io.CopyN(io.MultiWriter(hash, f), rand.NewChaCha8(seed), n[1+i]); err != nil {
				os.Exit(98)
			}
			if _, err := f.Write(hash.Sum(nil)); err != nil {
				os.Exit(98)
			}
		})
	}
	both.Wait()
	if n[4] != 0 {
		// Without the handlers of Go's runtime.
		var byDefault [4]uint64 // struct sigaction of the kernel
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(n[4]), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0)
		unix.Kill(os.Getpid(), unix.Signal(n[4]))
		time.Sleep(time.Minute)
	}
	os.Exit(int(n[3]))
}

// agent is an agent that was started in a wrong way: it makes itself like a login, then runs a command in a container:
// CTID, command. It prints the command's output.
func agent(args []string) int {
	if err := attach.AsLogin(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 97
	}
	ctid, err := strconv.Atoi(args[0])
	if err != nil {
		panic(err)
	}
	p, err := attach.Attacher{}.Start(context.Background(), attach.Command{CTID: int32(ctid), Argv: args[1:], Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 97
	}
	exit, err := p.Wait()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 97
	}
	return exit.Code
}
