package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Assignment reads the text of a gpu_assignment: selectors between commas, with blanks around them at will; "none" and ""
// are none. The selectors are returned in the order of their kinds, and within a kind ascending; only a profile may be
// among them more than once. The error says what would be right.
func Assignment(s string) ([]Selector, error) {
	trimmed := strings.Trim(s, " \t")
	if trimmed == "" || trimmed == "none" {
		return nil, nil
	}
	if err := foreignForm(s, trimmed); err != nil {
		return nil, err
	}
	parts := strings.Split(trimmed, ",")
	if len(parts) > maxGPU+1 {
		return nil, fmt.Errorf("%d elements in %s; a container has at most %d GPUs", len(parts), quote(s), maxGPU+1)
	}
	var selectors []Selector
	for i, part := range parts {
		part = strings.Trim(part, " \t")
		if part == "" {
			return nil, fmt.Errorf("%s %s; %s", quote(s), emptyPart(i, len(parts)), suggest(parts))
		}
		sel, err := selector(part)
		if err != nil {
			return nil, err
		}
		if sel.Kind != ByProfile && slices.ContainsFunc(selectors, sel.same) {
			return nil, fmt.Errorf("%s appears twice in %s; %s", sel, quote(s), suggest(parts))
		}
		selectors = append(selectors, sel)
	}
	if err := fitTogether(selectors); err != nil {
		return nil, err
	}
	slices.SortFunc(selectors, compare)
	return selectors, nil
}

// Text returns an assignment as Assignment reads it, in its one canonical form.
func Text(selectors []Selector) string {
	if len(selectors) == 0 {
		return "none"
	}
	var words []string
	for _, s := range selectors {
		words = append(words, s.word())
	}
	return strings.Join(words, ",")
}

// foreignForm says what is meant by forms that other tools know.
func foreignForm(s, trimmed string) error {
	lower := strings.ToLower(trimmed)
	switch {
	case lower == "none" || lower == "null":
		return fmt.Errorf("%s is not a GPU; to give no GPU write \"none\"", quote(s))
	case lower == "all" && trimmed != "all", lower == "*":
		return fmt.Errorf("%s is not a GPU; for every GPU of the node write \"all\"", quote(s))
	case strings.HasPrefix(trimmed, "["):
		return fmt.Errorf("%s has brackets; write the GPUs alone, for example \"0,1\"", quote(s))
	}
	return nil
}

func emptyPart(i, of int) string {
	switch i {
	case 0:
		return "begins with a comma"
	case of - 1:
		return "has a comma at the end"
	}
	return "has two commas with nothing between them"
}

// suggest says how to write the elements that are good among parts.
func suggest(parts []string) string {
	var good []Selector
	for _, part := range parts {
		sel, err := selector(strings.Trim(part, " \t"))
		if err == nil && !slices.ContainsFunc(good, sel.same) {
			good = append(good, sel)
		}
	}
	if len(good) == 0 {
		return `write "none", or indexes such as "0,1"`
	}
	return "write " + quote(Text(good))
}

// fitTogether tells of selectors that cannot stand beside each other.
func fitTogether(selectors []Selector) error {
	anyOf, total := 0, 0
	for _, s := range selectors {
		switch {
		case s.Kind == All && len(selectors) > 1:
			return fmt.Errorf("\"all\" stands among others; write \"all\" alone, or only the others")
		case s.Kind == Any:
			anyOf++
			total += s.Count
		}
	}
	if anyOf > 1 {
		return fmt.Errorf("\"any\" stands there %d times; write \"any:%d\"", anyOf, total)
	}
	return nil
}

// same tells whether two selectors say the same, however they are written. Two of "any" never do.
func (s Selector) same(other Selector) bool {
	s.Text, other.Text = "", ""
	return s == other && s.Kind != Any
}

func compare(a, b Selector) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Index, b.Index), cmp.Compare(a.MIG, b.MIG), cmp.Compare(a.ID, b.ID))
}

// index reads a decimal number from 0 to 255 without leading zeros.
func index(s string) (int, error) {
	if !digits(s) {
		return 0, fmt.Errorf("%s is not a number; indexes go from 0 to %d", quote(s), maxGPU)
	}
	if len(s) > 1 && s[0] == '0' {
		if bare := strings.TrimLeft(s[:len(s)-1], "0") + s[len(s)-1:]; len(bare) <= 3 {
			return 0, fmt.Errorf("%s has a leading zero; write \"%s\"", quote(s), bare)
		}
	}
	n, err := strconv.Atoi(s)
	if err != nil || n > maxGPU {
		return 0, fmt.Errorf("GPU %s is out of range; indexes go from 0 to %d", clip(s), maxGPU)
	}
	return n, nil
}

// digits tells whether s is ASCII digits, and not empty.
func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// clip cuts digits for a message.
func clip(s string) string {
	if len(s) > 20 {
		return s[:20] + "..."
	}
	return s
}
