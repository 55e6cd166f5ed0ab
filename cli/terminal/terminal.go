// Package terminal knows whether a stream is a terminal, sets it to raw mode and back, and draws on it.
package terminal

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/term"
)

// Is tells whether a stream is a terminal. Only an [*os.File] can be one.
func Is(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// IsPiped tells whether a stream is a pipe, a socket or a regular file: something with an end that was meant to be read.
// A terminal and /dev/null are not.
func IsPiped(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && (info.Mode().IsRegular() || info.Mode()&(fs.ModeNamedPipe|fs.ModeSocket) != 0)
}

// Size returns the columns and rows of a terminal; ok is false if the stream is none, or does not tell.
func Size(stream any) (columns, rows int, ok bool) {
	f, isFile := stream.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	columns, rows, err := term.GetSize(int(f.Fd()))
	return columns, rows, err == nil && columns > 0 && rows > 0
}

// Raw switches a terminal to raw mode, in which every key, also Ctrl-C, is data, and returns what switches it back.
// The caller defers that at once: a program that leaves a terminal raw leaves it unusable.
func Raw(f *os.File) (restore func() error, err error) {
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("switch %s to raw mode: %w", f.Name(), err)
	}
	return func() error {
		if err := term.Restore(int(f.Fd()), old); err != nil {
			return fmt.Errorf("switch %s back from raw mode: %w", f.Name(), err)
		}
		return nil
	}, nil
}
