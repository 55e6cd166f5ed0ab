package fleet

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
)

// A Severity says how bad a finding is.
type Severity int

// The severities.
const (
	Error   Severity = iota + 1 // nothing is planned until it is mended
	Warning                     // odd, but not in the way
)

// A Finding is something that a person should know about a fleet file.
type Finding struct {
	File     string
	Severity Severity
	Line     int    // from 1; 0 if it is about no single place
	Column   int    // in bytes, from 1; 0 as for the line
	CTID     int32  // 0 if it is about no container
	Key      string // dotted: "health_check.retries"; empty if it is about none
	Message  string
}

// String returns the finding as people read it: "FILE:LINE:COLUMN: containers 901: gpu_assignment: MESSAGE", and for a
// warning "FILE:LINE:COLUMN: warning: containers 901: ...".
func (f Finding) String() string {
	if f.Severity == Warning {
		return f.text("warning: ")
	}
	return f.text("")
}

// Unmarked returns the finding as String does, without saying that it is a warning.
func (f Finding) Unmarked() string { return f.text("") }

func (f Finding) text(mark string) string {
	var s strings.Builder
	s.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&s, ":%d:%d", f.Line, f.Column)
	}
	s.WriteString(": " + mark)
	if f.CTID != 0 {
		fmt.Fprintf(&s, "containers %d: ", f.CTID)
	}
	if f.Key != "" {
		s.WriteString(f.Key + ": ")
	}
	s.WriteString(f.Message)
	return s.String()
}

// More findings than this of one severity help nobody, and a hostile file could ask for a million.
const maxFindings = 1000

// A report collects the findings of one file.
type report struct {
	file             string
	text             []byte
	lines            []int // offsets at which lines begin; made at the first use
	errors, warnings []placed
	moreErrors       int
	moreWarnings     int
}

type placed struct {
	Finding
	offset int
}

// A place is where a finding is, and what it is about.
type place struct {
	offset int // -1 for no single place
	ctid   int32
	key    string
}

func (r *report) errorf(at place, format string, args ...any) {
	if len(r.errors) == maxFindings {
		r.moreErrors++
		return
	}
	r.errors = append(r.errors, r.finding(Error, at, fmt.Sprintf(format, args...)))
}

func (r *report) warnf(at place, format string, args ...any) {
	if !r.wantsWarning() {
		return
	}
	r.warnings = append(r.warnings, r.finding(Warning, at, fmt.Sprintf(format, args...)))
}

// wantsWarning tells whether another warning would be kept, and counts it if not.
func (r *report) wantsWarning() bool {
	if len(r.warnings) < maxFindings {
		return true
	}
	r.moreWarnings++
	return false
}

func (r *report) finding(s Severity, at place, message string) placed {
	f := Finding{File: r.file, Severity: s, CTID: at.ctid, Key: at.key, Message: message}
	if at.offset >= 0 {
		f.Line, f.Column = r.position(at.offset)
	}
	return placed{f, at.offset}
}

// position returns line and column of an offset, both from 1.
func (r *report) position(offset int) (line, column int) {
	if r.lines == nil {
		r.lines = []int{0}
		for i := 0; ; {
			n := bytes.IndexByte(r.text[i:], '\n')
			if n < 0 {
				break
			}
			i += n + 1
			r.lines = append(r.lines, i)
		}
	}
	i, found := slices.BinarySearch(r.lines, offset)
	if !found {
		i--
	}
	return i + 1, offset - r.lines[i] + 1
}

// findings returns all of them in the order of the file.
func (r *report) findings() []Finding {
	all := slices.Concat(r.errors, r.warnings)
	slices.SortStableFunc(all, func(a, b placed) int { return a.offset - b.offset })
	var fs []Finding
	for _, p := range all {
		fs = append(fs, p.Finding)
	}
	if r.moreErrors > 0 {
		fs = append(fs, r.finding(Error, place{offset: -1}, fmt.Sprintf("%d more errors are not shown", r.moreErrors)).Finding)
	}
	if r.moreWarnings > 0 {
		fs = append(fs, r.finding(Warning, place{offset: -1}, fmt.Sprintf("%d more warnings are not shown", r.moreWarnings)).Finding)
	}
	return fs
}
