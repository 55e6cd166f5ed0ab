package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Assignment reads the text of a gpu_assignment: GPU indexes from 0 to 255 between commas, with blanks around them at
// will; "none" and "" are none. The indexes are returned ascending. The error says what would be right.
func Assignment(s string) ([]int, error) {
	trimmed := strings.Trim(s, " \t")
	if trimmed == "" || trimmed == "none" {
		return nil, nil
	}
	if err := foreignForm(s, trimmed); err != nil {
		return nil, err
	}
	parts := strings.Split(trimmed, ",")
	if len(parts) > maxGPU+1 {
		return nil, fmt.Errorf("%d indexes in %s; a container has at most %d GPUs", len(parts), quote(s), maxGPU+1)
	}
	var gpus []int
	for i, part := range parts {
		part = strings.Trim(part, " \t")
		if part == "" {
			return nil, fmt.Errorf("%s %s; %s", quote(s), emptyPart(i, len(parts)), suggest(parts))
		}
		gpu, err := index(part)
		if err != nil {
			return nil, err
		}
		if slices.Contains(gpus, gpu) {
			return nil, fmt.Errorf("GPU %d appears twice in %s; %s", gpu, quote(s), suggest(parts))
		}
		gpus = append(gpus, gpu)
	}
	slices.Sort(gpus)
	return gpus, nil
}

// foreignForm says what is meant by forms that other tools know.
func foreignForm(s, trimmed string) error {
	lower := strings.ToLower(trimmed)
	switch {
	case lower == "none" || lower == "null":
		return fmt.Errorf("%s is not a GPU index; to give no GPU write \"none\"", quote(s))
	case lower == "all" || lower == "*":
		return fmt.Errorf("%s is not supported; list the indexes, for example \"0,1\"", quote(s))
	case strings.HasPrefix(trimmed, "["):
		return fmt.Errorf("%s has brackets; write the indexes alone, for example \"0,1\"", quote(s))
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
	return "has two commas with no index between them"
}

// suggest says how to write the indexes that are good among parts.
func suggest(parts []string) string {
	var good []string
	for _, part := range parts {
		part = strings.Trim(part, " \t")
		if _, err := index(part); err == nil && !slices.Contains(good, part) {
			good = append(good, part)
		}
	}
	if len(good) == 0 {
		return `write "none", or indexes such as "0,1"`
	}
	return "write " + quote(strings.Join(good, ","))
}

func index(s string) (int, error) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, notAnIndex(s)
		}
	}
	if s == "" {
		return 0, errors.New("no index")
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

func notAnIndex(s string) error {
	lower := strings.ToLower(s)
	from, to, isRange := strings.Cut(s, "-")
	switch {
	case strings.HasPrefix(lower, "gpu-"), strings.HasPrefix(lower, "mig-"):
		return fmt.Errorf("%s is a UUID: not supported yet, use the index that nvidia-smi shows", quote(s))
	case strings.Count(s, ":") > 0 && strings.Contains(s, "."):
		return fmt.Errorf("%s is a PCI address: not supported yet, use the index that nvidia-smi shows", quote(s))
	case strings.HasPrefix(s, "/dev/"):
		return fmt.Errorf("%s is a device; use the index that nvidia-smi shows", quote(s))
	case lower == "none":
		return fmt.Errorf("%s stands among indexes; write \"none\" alone, or only indexes", quote(s))
	case strings.HasPrefix(s, "-"):
		return fmt.Errorf("%s is negative; indexes go from 0 to %d", quote(s), maxGPU)
	case isRange:
		return rangeForm(s, strings.Trim(from, " \t"), strings.Trim(to, " \t"))
	case strings.ContainsFunc(s, func(c rune) bool { return c > unicode.MaxASCII && unicode.IsDigit(c) }):
		return fmt.Errorf("%s has digits that are not ASCII; write 0 to 9", quote(s))
	case strings.ContainsAny(s, " \t;:|/"):
		return fmt.Errorf("%s is not a GPU index; put commas between indexes, for example \"0,1\"", quote(s))
	}
	return fmt.Errorf("%s is not a GPU index; write indexes such as \"0,1\", or \"none\"", quote(s))
}

func rangeForm(s, from, to string) error {
	a, errA := index(from)
	b, errB := index(to)
	if errA != nil || errB != nil || a >= b || b-a > 15 {
		return fmt.Errorf("%s is not a GPU index; write indexes such as \"0,1\", or \"none\"", quote(s))
	}
	var each []string
	for i := a; i <= b; i++ {
		each = append(each, strconv.Itoa(i))
	}
	return fmt.Errorf("%s is a range: list each index, \"%s\"", quote(s), strings.Join(each, ","))
}

// clip cuts digits for a message.
func clip(s string) string {
	if len(s) > 20 {
		return s[:20] + "..."
	}
	return s
}
