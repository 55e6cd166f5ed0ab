// This file is added to the programs when they are built to be profiled; see profile_test.go.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"
)

// A daemon's profile lasts from one SIGUSR1 to the next, that of phoenix-cli for the first seconds of each process: a
// shorter one leaves none.
func init() {
	dir, name := os.Getenv("PHOENIX_BENCH_PROFILES"), filepath.Base(os.Args[0])
	if dir == "" || len(os.Args) < 3 { // the agent is also the helper of its probes
		return
	}
	if name == "phoenix-cli" {
		record(filepath.Join(dir, fmt.Sprintf("%s-%d", name, os.Getpid())), time.After(3*time.Second))
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	go func() {
		for range signals {
			stop := make(chan time.Time)
			done := record(filepath.Join(dir, name), stop)
			<-signals
			close(stop)
			<-done
		}
	}()
}

func record(path string, stop <-chan time.Time) (done chan struct{}) {
	f, err := os.Create(path + ".part")
	if err == nil {
		err = pprof.StartCPUProfile(f)
	}
	if err != nil {
		panic(err)
	}
	done = make(chan struct{})
	go func() {
		defer close(done)
		<-stop
		pprof.StopCPUProfile()
		f.Close()
		os.Rename(path+".part", path+".pprof")
	}()
	return done
}
