package lxcconf

import (
	"math"
	"regexp"
	"strconv"
	"strings"
)

// truth is what Perl takes for true; an absent value is "".
func truth(v string) bool { return v != "" && v != "0" }

var (
	numberPrefix   = regexp.MustCompile(`^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?`)
	infinityPrefix = regexp.MustCompile(`^(?i)[+-]?inf`)
)

// number reads v as Perl does: the longest number at its beginning, 0 if there is none.
func number(v string) float64 {
	v = strings.TrimLeft(v, " \t\n\v\f\r")
	if s := infinityPrefix.FindString(v); s != "" {
		return math.Inf(1 - 2*strings.Count(s, "-"))
	}
	n, _ := strconv.ParseFloat(numberPrefix.FindString(v), 64) // out of range is an infinity, as in Perl
	return n
}

// integer is Perl's int, as text: exact up to 64 bits, beyond them a float with 15 digits.
func integer(n float64) string {
	n = math.Trunc(n)
	switch {
	case math.IsInf(n, 1):
		return "Inf"
	case math.IsInf(n, -1):
		return "-Inf"
	case n >= 0 && n < 1<<64:
		return strconv.FormatUint(uint64(n), 10)
	case n < 0 && n >= -1<<63:
		return strconv.FormatInt(int64(n), 10)
	}
	return strconv.FormatFloat(n, 'g', 15, 64)
}
