package fleet

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// A SelectorKind is a way to say which GPUs are meant.
type SelectorKind int

// The kinds. A MIG device is one compute instance, as nvidia-smi lists it under its GPU.
const (
	ByIndex    SelectorKind = iota + 1 // "0": as nvidia-smi counts
	ByMIGIndex                         // "0:1": MIG device 1 of GPU 0, as nvidia-smi counts
	ByUUID                             // "GPU-5b1f4c8e-...", or a beginning of it that is unique on the node
	ByMIGUUID                          // "MIG-...", likewise
	ByAddress                          // "0000:01:00.0" or "01:00.0": the PCI address
	ByProfile                          // "1g.10gb": one free MIG device of this profile
	Any                                // "any:2": two GPUs that the planner picks
	All                                // "all": whatever the node has
)

// A Selector is one element of a gpu_assignment. It is comparable.
type Selector struct {
	Kind  SelectorKind
	Text  string // as written
	Index int    // ByIndex, ByMIGIndex: of the GPU
	MIG   int    // ByMIGIndex: of the MIG device in the GPU
	Count int    // Any: how many GPUs
	// ID is for ByUUID and ByMIGUUID the prefix and lower-case digits, for ByAddress the address as dddd:bb:ss.f in lower
	// case, for ByProfile the profile.
	ID string
}

// String names what is selected for people: "GPU 0", "GPU 0 MIG 1", and else the element as it is written in an assignment.
func (s Selector) String() string {
	switch s.Kind {
	case ByIndex:
		return "GPU " + strconv.Itoa(s.Index)
	case ByMIGIndex:
		return fmt.Sprintf("GPU %d MIG %d", s.Index, s.MIG)
	}
	return s.word()
}

// word returns the element in its canonical form.
func (s Selector) word() string {
	switch s.Kind {
	case ByIndex:
		return strconv.Itoa(s.Index)
	case ByMIGIndex:
		return fmt.Sprintf("%d:%d", s.Index, s.MIG)
	case Any:
		return "any:" + strconv.Itoa(s.Count)
	case All:
		return "all"
	}
	return s.ID
}

// selector reads one element.
func selector(s string) (Selector, error) {
	sel := Selector{Text: s}
	var err error
	switch {
	case digits(s):
		sel.Kind = ByIndex
		sel.Index, err = index(s)
	case s == "all":
		sel.Kind = All
	case strings.HasPrefix(s, "any:") || s == "any":
		sel.Kind = Any
		sel.Count, err = anyCount(s)
	case strings.HasPrefix(s, "GPU-"):
		sel.Kind = ByUUID
		sel.ID, err = uuid(s, "GPU-")
	case strings.HasPrefix(s, "MIG-"):
		sel.Kind = ByMIGUUID
		sel.ID, err = uuid(s, "MIG-")
	case profilePattern.MatchString(s):
		sel.Kind, sel.ID = ByProfile, s
	case addressPattern.MatchString(s):
		sel.Kind, sel.ID = ByAddress, address(s)
	case migIndexPattern.MatchString(s):
		sel.Kind = ByMIGIndex
		sel.Index, sel.MIG, err = migIndex(s)
	default:
		err = noSelector(s)
	}
	if err != nil {
		return Selector{}, err
	}
	return sel, nil
}

var (
	// As nvidia-smi names profiles: with the slices of the compute instance before it if it is not the whole GPU instance,
	// and attributes behind it, "+me" or "+gfx" for example.
	profilePattern  = regexp.MustCompile(`^([1-9]c\.)?[1-9]g\.[1-9][0-9]{0,3}gb([+-][a-z]+(\.[a-z]+)*)?$`)
	addressPattern  = regexp.MustCompile(`^(([0-9a-fA-F]{4}|[0-9a-fA-F]{8}):)?[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]$`)
	migIndexPattern = regexp.MustCompile(`^[0-9]+:[0-9]+$`)
	uuidPattern     = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)

	shortAddress = regexp.MustCompile(`^(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})(?:\.([0-7]))?$`)
	times        = regexp.MustCompile(`^(?:([1-9])[x*](.+)|(.+)[x*:]([1-9]))$`)
	indexed      = regexp.MustCompile(`^(?i)(?:gpu|nvidia|cuda)[ :=]?([0-9]{1,3})$`)
)

// anyCount reads "any:N".
func anyCount(s string) (int, error) {
	n := strings.TrimPrefix(s, "any:")
	count, err := index(n)
	switch {
	case s == "any":
		return 0, fmt.Errorf("\"any\" does not say how many; write \"any:1\"")
	case err != nil || count == 0:
		return 0, fmt.Errorf("%s does not say how many; write a number from 1 to %d behind the colon, for example \"any:1\"", quote(s), maxGPU)
	}
	return count, nil
}

// uuid reads a UUID behind its prefix, or a beginning of one, and returns it with lower-case digits.
func uuid(s, prefix string) (string, error) {
	const form = "00000000-0000-0000-0000-000000000000"
	id := strings.ToLower(s[len(prefix):])
	wrong := len(id) > len(form) || id == ""
	for i := 0; i < len(id) && !wrong; i++ {
		isDigit := id[i] >= '0' && id[i] <= '9' || id[i] >= 'a' && id[i] <= 'f'
		wrong = isDigit != (form[i] == '0') || !isDigit && id[i] != '-'
	}
	switch {
	case strings.HasPrefix(id, "gpu-"):
		return "", fmt.Errorf("%s is how drivers before 470 name a MIG device; write the UUID that nvidia-smi -L shows, or for example \"0:1\"", quote(s))
	case wrong:
		return "", fmt.Errorf("%s is no UUID; write %s and the digits as nvidia-smi -L shows them, or enough of them from the left to be unique on the node", quote(s), prefix)
	}
	return prefix + strings.TrimSuffix(id, "-"), nil
}

// address returns a PCI address as dddd:bb:ss.f in lower case. NVML writes the domain with eight digits.
func address(s string) string {
	domain := "0000"
	if rest := len(s) - len("bb:ss.f"); rest > 0 {
		domain, s = s[:rest-1], s[rest:]
	}
	n, err := strconv.ParseUint(domain, 16, 32)
	if err != nil {
		panic("fleet: the pattern of addresses let " + domain + " through")
	}
	return strings.ToLower(fmt.Sprintf("%04x:%s", n, s))
}

// migIndex reads "0:1".
func migIndex(s string) (gpu, mig int, err error) {
	g, m, _ := strings.Cut(s, ":")
	gpu, errGPU := index(g)
	mig, errMIG := index(m)
	switch {
	case errGPU == nil && errMIG == nil:
		return gpu, mig, nil
	case len(g) == 2 && len(m) == 2:
		return 0, 0, fmt.Errorf("%s is no PCI address without its function; write \"%s.0\"; MIG device 1 of GPU 0 is \"0:1\"", quote(s), s)
	case errGPU != nil:
		return 0, 0, fmt.Errorf("%s: %w", quote(s), errGPU)
	}
	return 0, 0, fmt.Errorf("%s: %w", quote(s), errMIG)
}

const forms = `write indexes such as "0,1", a UUID, a PCI address, "any:1", "all" or "none"`

// noSelector says what was probably meant.
func noSelector(s string) error {
	lower := strings.ToLower(s)
	from, to, isRange := strings.Cut(s, "-")
	bare := strings.NewReplacer(" ", "", "\t", "").Replace(s)
	switch {
	case uuidPattern.MatchString(s):
		return fmt.Errorf("%s lacks its prefix; write \"GPU-%s\", or \"MIG-%s\" for a MIG device", quote(s), lower, lower)
	case strings.HasPrefix(lower, "gpu-"), strings.HasPrefix(lower, "mig-") && !profilePattern.MatchString(lower[len("mig-"):]):
		return fmt.Errorf("%s: GPU- and MIG- are written in upper case; write %s", quote(s), quote(strings.ToUpper(s[:3])+s[3:]))
	case lower == "none":
		return fmt.Errorf("%s stands among GPUs; write \"none\" alone, or only GPUs", quote(s))
	case strings.HasPrefix(lower, "any:") || lower == "any" || lower == "all" || profilePattern.MatchString(lower):
		return fmt.Errorf("%s is written in lower case; write %s", quote(s), quote(lower))
	case profilePattern.MatchString(strings.TrimLeft(strings.TrimPrefix(lower, "mig"), " -:")):
		return fmt.Errorf("%s: a profile stands alone; write \"%s\"", quote(s), strings.TrimLeft(strings.TrimPrefix(lower, "mig"), " -:"))
	case strings.HasPrefix(s, "/dev/"):
		return fmt.Errorf("%s is a device; use the index that nvidia-smi shows", quote(s))
	case strings.HasPrefix(s, "-"):
		return fmt.Errorf("%s is negative; indexes go from 0 to %d", quote(s), maxGPU)
	case indexed.MatchString(s):
		return fmt.Errorf("%s has more than the index; write \"%s\"", quote(s), indexed.FindStringSubmatch(s)[1])
	case shortAddress.MatchString(s):
		return wholeAddress(s)
	case severalTimes(s) != "":
		return fmt.Errorf("%s: a profile stands there once for each MIG device; write \"%s\"", quote(s), severalTimes(s))
	case isRange:
		return rangeForm(s, strings.Trim(from, " \t"), strings.Trim(to, " \t"))
	case strings.ContainsFunc(s, func(c rune) bool { return c > unicode.MaxASCII && unicode.IsDigit(c) }):
		return fmt.Errorf("%s has digits that are not ASCII; write 0 to 9", quote(s))
	case migIndexPattern.MatchString(bare) || addressPattern.MatchString(bare):
		return fmt.Errorf("%s has blanks in it; write %s", quote(s), quote(bare))
	case strings.ContainsAny(s, " \t;|/"):
		return fmt.Errorf("%s is not a GPU; put commas between GPUs, for example \"0,1\"", quote(s))
	}
	return fmt.Errorf("%s is not a GPU; %s", quote(s), forms)
}

// severalTimes spells out "2x1g.10gb" and the like; "" if it is nothing of that kind.
func severalTimes(s string) string {
	m := times.FindStringSubmatch(s)
	if m == nil || !profilePattern.MatchString(m[2]+m[3]) {
		return ""
	}
	n, _ := strconv.Atoi(m[1] + m[4]) // one digit
	return strings.TrimSuffix(strings.Repeat(m[2]+m[3]+",", n), ",")
}

// wholeAddress says how a PCI address is written that lacks digits.
func wholeAddress(s string) error {
	m := shortAddress.FindStringSubmatch(s)
	pad := func(s string, width int) string { return strings.Repeat("0", max(0, width-len(s))) + s }
	domain, function := "0000", "0"
	if m[1] != "" {
		domain = pad(m[1], 4)
	}
	if m[4] != "" {
		function = m[4]
	}
	whole := domain + ":" + pad(m[2], 2) + ":" + pad(m[3], 2) + "." + function
	if !addressPattern.MatchString(whole) {
		return fmt.Errorf("%s is no PCI address; write it as nvidia-smi shows it, for example \"0000:01:00.0\"", quote(s))
	}
	return fmt.Errorf("%s is no whole PCI address; write \"%s\"", quote(s), address(whole))
}

func rangeForm(s, from, to string) error {
	a, errA := index(from)
	b, errB := index(to)
	if errA != nil || errB != nil || a >= b || b-a > 15 {
		return fmt.Errorf("%s is not a GPU; %s", quote(s), forms)
	}
	var each []string
	for i := a; i <= b; i++ {
		each = append(each, strconv.Itoa(i))
	}
	return fmt.Errorf("%s is a range: list each index, \"%s\"", quote(s), strings.Join(each, ","))
}
