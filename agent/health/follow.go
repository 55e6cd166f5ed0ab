package health

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A record is one message of the kernel itself.
type record struct {
	sequence int64
	time     time.Time
	message  string
}

// maxRecord is more than the kernel's greatest record, CONSOLE_EXT_LOG_MAX of printk: a read of /dev/kmsg gives a whole
// one or fails.
const maxRecord = 16 << 10

// pollInterval is how often a regular file is looked at for more.
const pollInterval = time.Second

// follow sends the records at path, those that are there and those to come, until ctx ends.
func follow(ctx context.Context, path string, records chan<- record) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // so that Close wakes a read
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	defer f.Close()
	r := bufio.NewReaderSize(f, maxRecord)
	var line strings.Builder
	for {
		part, err := r.ReadString('\n')
		line.WriteString(part)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, unix.EPIPE):
			continue // records were overwritten before we read them
		case errors.Is(err, io.EOF):
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(pollInterval):
			}
			continue
		case err != nil:
			return err
		}
		rec, ok := parseRecord(line.String())
		line.Reset()
		if !ok {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case records <- rec:
		}
	}
}

// parseRecord reads a line of /dev/kmsg, "priority,sequence,microseconds,flags[,...];message" (Documentation/ABI/testing/
// dev-kmsg). It refuses what is not the kernel's own: whoever may write to /dev/kmsg gets a facility other than 0.
func parseRecord(line string) (record, bool) {
	head, message, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ";")
	fields := strings.Split(head, ",")
	if !ok || len(fields) < 4 {
		return record{}, false // a continuation line " KEY=value" too
	}
	priority, err1 := strconv.ParseUint(fields[0], 10, 32)
	sequence, err2 := strconv.ParseInt(fields[1], 10, 64)
	micros, err3 := strconv.ParseInt(fields[2], 10, 64)
	const levels = 8
	if errors.Join(err1, err2, err3) != nil || priority >= levels {
		return record{}, false
	}
	return record{sequence: sequence, time: wallTime(time.Duration(micros) * time.Microsecond), message: message}, true
}

// wallTime turns the time of a record, which counts from the boot without the time in suspend, into that of the clock.
func wallTime(sinceBoot time.Duration) time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Now()
	}
	return time.Now().Add(sinceBoot - time.Duration(now.Nano()))
}
