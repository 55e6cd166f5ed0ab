package terminal_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/creack/pty"

	"phoenix.internal/cli/output"
	"phoenix.internal/cli/terminal"
)

func TestBoard(t *testing.T) {
	line := func(s string) terminal.Line { return terminal.Line{{Text: s, Color: output.Good}} }
	columns, rows := 6, 5
	var b bytes.Buffer
	board := terminal.NewBoard(&b, true, func() (int, int) { return columns, rows })
	for _, test := range []struct {
		name  string
		lines []terminal.Line
		want  string
	}{
		{"first", []terminal.Line{line("a"), line("b")}, "\x1b[32ma\x1b[0m\x1b[K\r\n\x1b[32mb\x1b[0m\x1b[K\r\n"},
		{"again, in place", []terminal.Line{line("c")}, "\x1b[2A\r\x1b[J\x1b[32mc\x1b[0m\x1b[K\r\n"},
		{"too wide", []terminal.Line{{{Text: "abcd"}, {Text: "efgh"}}}, "\x1b[1A\r\x1b[Jabcde…\x1b[K\r\n"},
		{"too high", []terminal.Line{line("a"), line("b"), line("c"), line("d"), line("e")},
			"\x1b[1A\r\x1b[J\x1b[32ma\x1b[0m\x1b[K\r\n\x1b[32mb\x1b[0m\x1b[K\r\n\x1b[32mc\x1b[0m\x1b[K\r\n\x1b[2m… and…\x1b[0m\x1b[K\r\n"},
		{"hostile", []terminal.Line{{{Text: "\x1b[2J"}}}, "\x1b[4A\r\x1b[J\\x1b[…\x1b[K\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.Reset()
			if err := board.Draw(test.lines); err != nil {
				t.Fatal(err)
			}
			if b.String() != test.want {
				t.Errorf("got  %q\nwant %q", b.String(), test.want)
			}
		})
	}
	board.Leave()
	b.Reset()
	if err := board.Draw([]terminal.Line{line("z")}); err != nil || b.String() != "\x1b[32mz\x1b[0m\x1b[K\r\n" {
		t.Errorf("after Leave: %q, %v", b.String(), err)
	}
}

// TestInputStops stops a read of a terminal on which nobody types.
func TestInputStops(t *testing.T) {
	person, tty, err := pty.Open()
	if err != nil {
		t.Skipf("no pseudo-terminal here: %v", err)
	}
	defer person.Close()
	defer tty.Close()
	in, err := terminal.NewInput(tty)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := person.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, err := in.Read(buf)
	if string(buf[:n]) != "hello\n" || err != nil {
		t.Fatalf("read %q, %v", buf[:n], err)
	}
	ended := make(chan error)
	go func() {
		_, err := in.Read(buf)
		ended <- err
	}()
	if err := in.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != io.EOF {
		t.Errorf("a stopped read returned %v, want EOF", err)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
}

func TestInputOfFiles(t *testing.T) {
	file, err := os.Open("terminal_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := w.Close(); err != nil { // an end, as of a writer that has gone
		t.Fatal(err)
	}
	want, err := os.ReadFile("terminal_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for f, want := range map[*os.File]string{file: string(want), null: "", r: ""} {
		in, err := terminal.NewInput(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(in)
		if string(got) != want || err != nil {
			t.Errorf("%s: read %d bytes, %v; want %d", f.Name(), len(got), err, len(want))
		}
		if err := errors.Join(in.Stop(), in.Close()); err != nil {
			t.Error(err)
		}
	}
}
