package fleet

import (
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

var (
	ctidPattern    = regexp.MustCompile(`^[1-9][0-9]{2,8}$`)
	featurePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
	nodePattern    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)
	versionPattern = regexp.MustCompile(`^[0-9]+(\.[0-9]+){1,3}$`)
	sumPattern     = regexp.MustCompile(`^[0-9a-fA-F]{64}$`)
)

// read fills f with what the file says.
func (f *Fleet) read(root *value, r *report) {
	if root.kind != object {
		r.errorf(place{offset: int(root.offset)}, "want an object, got %s; a fleet file is at least {\"lxc_configs\": {}}", root.kind)
		return
	}
	for _, key := range []string{"vms", "vm_configs", "vm_defaults"} {
		if m := root.member(key); m != nil && root.member("lxc_configs") == nil {
			r.errorf(place{offset: int(m.offset), key: key}, "this is a file of virtual machines; Phoenix takes the one of the LXC containers, phoenix_lxc_configs.json")
			return
		}
	}
	top := reader{r, place{}}
	top.unknownKeys(root, "", "")
	f.Mode = top.mode(root, ModeRaw)
	f.Policy = top.policy(root, PolicyShared)
	f.DriverMode = top.driverMode(root, DriverInstall)
	f.DriverVersion = top.driverVersion(root)
	f.Runfile = top.runfile(root)
	f.RunfileSHA256 = top.runfileSHA256(root)

	m := root.member("lxc_configs")
	switch {
	case m == nil:
		r.errorf(place{offset: int(root.offset), key: "lxc_configs"}, "missing; the containers stand in it by CTID")
		return
	case m.value.kind != object:
		r.errorf(place{offset: int(m.value.offset), key: "lxc_configs"}, "want an object of containers by CTID, got %s", m.value.kind)
		return
	case len(m.value.members) == 0:
		r.warnf(place{offset: int(m.value.offset), key: "lxc_configs"}, "no containers, so there is nothing to do")
		return
	case len(m.value.members) > MaxContainers:
		r.errorf(place{offset: int(m.value.members[MaxContainers].offset), key: "lxc_configs"}, "%d containers are too many; a fleet file has at most %d", len(m.value.members), MaxContainers)
		return
	}
	f.readContainers(m.value, r)
}

func (f *Fleet) readContainers(v *value, r *report) {
	var all []declared
	for _, m := range v.members {
		ctid, ok := parseCTID(m.key)
		if !ok {
			r.errorf(place{offset: int(m.offset), key: "lxc_configs"}, "%s is not a CTID; %s", quote(m.key), ctidForm)
			continue
		}
		if d, ok := f.readContainer(ctid, m, r); ok {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b declared) int { return int(a.CTID - b.CTID) })
	checkOrder(all, r)
	for _, d := range all {
		if d.good {
			f.Containers = append(f.Containers, d.Container)
		}
	}
}

const ctidForm = "a CTID is 100 to 999999999 in ASCII digits, without leading zero"

func parseCTID(s string) (int32, bool) {
	if !ctidPattern.MatchString(s) {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 32)
	return int32(n), err == nil
}

// A declared container is one with the places that later checks need.
type declared struct {
	Container
	good  bool // no error in it
	edges []edge
}

// An edge says that another container comes first.
type edge struct {
	to    int32
	clone bool // by clone_from_ctid
	at    place
}

func (f *Fleet) readContainer(ctid int32, m member, r *report) (declared, bool) {
	line, _ := r.position(int(m.offset))
	d := declared{Container: Container{CTID: ctid, Line: line, Mode: f.Mode, Policy: f.Policy, DriverMode: f.DriverMode}}
	at := reader{r, place{offset: int(m.offset), ctid: ctid}}
	if m.value.kind != object {
		at.errorf("", m.value, "want an object, got %s", m.value.kind)
		return d, false
	}
	before := len(r.errors) + r.moreErrors
	at.unknownKeys(m.value, aContainer, "")
	d.Name = at.name(m.value)
	d.Node = at.node(m.value)
	d.GPUs = at.gpus(m.value)
	d.Mode = at.mode(m.value, f.Mode)
	d.Policy = at.policy(m.value, f.Policy)
	d.Capabilities = at.capabilities(m.value)
	d.DriverMode = at.driverMode(m.value, f.DriverMode)
	d.CloneFrom, d.edges = at.cloneFrom(m.value)
	dependencies, edges := at.dependencies(m.value)
	d.Dependencies, d.edges = dependencies, append(d.edges, edges...)
	d.Features = at.features(m.value)
	d.HealthCheck = at.healthCheck(m.value)
	d.good = len(r.errors)+r.moreErrors == before
	return d, true
}

// A reader reads the keys of one object. Each method returns the zero value where it reports an error.
type reader struct {
	*report
	at place
}

func (r reader) place(key string, v *value) place {
	return place{offset: int(v.offset), ctid: r.at.ctid, key: key}
}

func (r reader) errorf(key string, v *value, format string, args ...any) {
	r.report.errorf(r.place(key, v), format, args...)
}

func (r reader) warnf(key string, v *value, format string, args ...any) {
	r.report.warnf(r.place(key, v), format, args...)
}

// unknownKeys warns of keys that are not known. In is the path of the object in the table of keys, prefix its path in
// the container with the last dot.
func (r reader) unknownKeys(v *value, in, prefix string) {
	for _, m := range v.members {
		k, ok := known[in][m.key]
		switch {
		case !ok:
			r.unknownKey(m, in, prefix)
		case !k.Open && k.Path != "lxc_configs":
			r.unknownKeysBelow(m.value, k.Path, prefix+m.key)
		}
	}
}

func (r reader) unknownKeysBelow(v *value, in, path string) {
	switch {
	case v.kind == object && known[in] != nil:
		r.unknownKeys(v, in, path+".")
	case v.kind == list && known[in+"[]"] != nil:
		for i, item := range v.items {
			if item.kind == object {
				r.unknownKeys(item, in+"[]", path+"["+strconv.Itoa(i)+"].")
			}
		}
	}
}

func (r reader) unknownKey(m member, in, prefix string) {
	if !r.wantsWarning() {
		return
	}
	hint := ""
	if s := similar(in, m.key); s != "" {
		hint = "; did you mean " + strconv.Quote(s) + "?"
	} else if known[aContainer][m.key].Path != "" && in == "" {
		hint = "; it belongs into a container"
	}
	at := place{offset: int(m.offset), ctid: r.at.ctid, key: strings.TrimSuffix(prefix, ".")}
	r.report.warnf(at, "unknown key %s%s", quote(m.key), hint)
}

// text returns the string of a key; present is false if it is not there, null, or an error.
func (r reader) text(v *value, key, example string) (s *value, present bool) {
	m := v.member(key)
	if m == nil || m.value.kind == null {
		return nil, false
	}
	if m.value.kind != text {
		r.errorf(key, m.value, "want a string such as %s, got %s", example, got(m.value))
		return nil, false
	}
	return m.value, true
}

// got describes a value of the wrong kind.
func got(v *value) string {
	switch v.kind {
	case boolean:
		return v.text
	case number:
		return "the number " + clip(v.text)
	case text:
		return "the string " + quote(v.text)
	}
	return v.kind.String()
}

func (r reader) name(v *value) string {
	const longest = 253
	s, ok := r.text(v, "name", `"web"`)
	switch {
	case !ok:
		return ""
	case len(s.text) > longest:
		r.errorf("name", s, "%d bytes are too many; a name has at most %d", len(s.text), longest)
	case strings.ContainsFunc(s.text, func(c rune) bool { return !unicode.IsPrint(c) }):
		r.errorf("name", s, "%s has a character that cannot be printed", quote(s.text))
	default:
		return s.text
	}
	return ""
}

func (r reader) node(v *value) string {
	s, ok := r.text(v, "node", `"pve1"`)
	switch {
	case !ok:
		return ""
	case !nodePattern.MatchString(s.text):
		r.errorf("node", s, "%s is not the name of a node; write it as the agents are named, for example \"pve1\", or leave the key out", quote(s.text))
		return ""
	}
	return s.text
}

func (r reader) gpus(v *value) []Selector {
	const key = "gpu_assignment"
	m := v.member(key)
	if m == nil || m.value.kind == null {
		return nil
	}
	switch m.value.kind {
	case text:
		gpus, err := Assignment(m.value.text)
		if err != nil {
			r.errorf(key, m.value, "%v", err)
		}
		return gpus
	case number:
		n, err := strconv.Atoi(m.value.text)
		if err != nil || n > maxGPU || m.value.text[0] == '-' {
			r.errorf(key, m.value, "want a string of indexes from 0 to %d such as \"0,1\", got the number %s", maxGPU, clip(m.value.text))
			return nil
		}
		r.warnf(key, m.value, "a number is taken for one index; write \"%d\"", n)
		return []Selector{{Kind: ByIndex, Text: m.value.text, Index: n}}
	case list:
		var parts []string
		for _, item := range m.value.items {
			parts = append(parts, item.text)
		}
		r.errorf(key, m.value, "want a string such as \"0,1\", got a list; %s", suggest(parts))
	case boolean:
		r.errorf(key, m.value, "want a string such as \"0,1\", got %s; to give no GPU write \"none\"", m.value.text)
	default:
		r.errorf(key, m.value, "want a string such as \"0,1\", got %s", m.value.kind)
	}
	return nil
}

func (r reader) mode(v *value, byDefault string) string {
	return r.choice(v, "passthrough_mode", "mode", byDefault, ModeRaw, ModeNative)
}

func (r reader) policy(v *value, byDefault string) string {
	return r.choice(v, "gpu_policy", "policy", byDefault, PolicyShared, PolicyExclusive)
}

func (r reader) driverMode(v *value, byDefault string) string {
	return r.choice(v, "driver_mode", "way to get a driver", byDefault, DriverInstall, DriverHost, DriverNone)
}

// choice reads a string that must be one of a few.
func (r reader) choice(v *value, key, what, byDefault string, of ...string) string {
	s, ok := r.text(v, key, strconv.Quote(of[0]))
	switch {
	case !ok:
		return byDefault
	case !slices.Contains(of, s.text):
		r.errorf(key, s, "%s is no %s; write %s", quote(s.text), what, either(of))
		return byDefault
	}
	return s.text
}

// either lists words: `"a", "b" or "c"`.
func either(words []string) string {
	var s strings.Builder
	for i, word := range words {
		switch {
		case i == len(words)-1 && i > 0:
			s.WriteString(" or ")
		case i > 0:
			s.WriteString(", ")
		}
		s.WriteString(strconv.Quote(word))
	}
	return s.String()
}

var capabilities = []string{CapabilityCompute, CapabilityGraphics, CapabilityFabric}

// capabilities reads a list of words, or a string with commas between them.
func (r reader) capabilities(v *value) []string {
	const key = "gpu_capabilities"
	byDefault := capabilities[:1:1]
	m := v.member(key)
	if m == nil || m.value.kind == null {
		return byDefault
	}
	var words []*value
	switch {
	case m.value.kind == list:
		words = m.value.items
	case m.value.kind == text && strings.Trim(m.value.text, " \t") == "":
	case m.value.kind == text && len(m.value.text) <= 1024:
		for word := range strings.SplitSeq(m.value.text, ",") {
			words = append(words, &value{kind: text, offset: m.value.offset, text: strings.Trim(word, " \t")})
		}
	case m.value.kind == text:
		r.errorf(key, m.value, "%d bytes are too many; write some of %s", len(m.value.text), either(capabilities))
		return byDefault
	default:
		r.errorf(key, m.value, "want a list such as [\"compute\", \"graphics\"], got %s", got(m.value))
		return byDefault
	}
	has := map[string]bool{}
	for _, word := range words {
		switch {
		case word.kind != text:
			r.errorf(key, word, "want a capability, %s, got %s", either(capabilities), got(word))
		case !slices.Contains(capabilities, word.text):
			r.errorf(key, word, "%s is no capability; write %s%s", quote(word.text), either(capabilities), otherCapability(word.text))
		case has[word.text]:
			r.warnf(key, word, "%s appears twice", quote(word.text))
		}
		has[word.text] = true
	}
	all := byDefault // which always counts
	for _, c := range capabilities[1:] {
		if has[c] {
			all = append(all, c)
		}
	}
	return all
}

// otherCapability says which capability has what NVIDIA_DRIVER_CAPABILITIES calls by another word.
func otherCapability(word string) string {
	switch strings.ToLower(word) {
	case "utility", "video", "compat32", "ngx":
		return "; what it names needs no device but those of \"compute\""
	case "display":
		return "; what it names comes with \"graphics\""
	case "all":
		return "; list those that are needed"
	}
	return ""
}

// runfile reads where the driver's installer is.
func (r reader) runfile(v *value) string {
	const key, longest = "nvidia_runfile_url", 2048
	s, ok := r.text(v, key, `"https://us.download.nvidia.com/XFree86/Linux-x86_64/580.76.05/NVIDIA-Linux-x86_64-580.76.05.run"`)
	if !ok || s.text == "" {
		return ""
	}
	u, err := url.Parse(s.text)
	isURL := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
	isPath := path.IsAbs(s.text) && path.Clean(s.text) == s.text && s.text != "/"
	switch {
	case len(s.text) > longest:
		r.errorf(key, s, "%d bytes are too many; a URL has at most %d here", len(s.text), longest)
	case strings.ContainsFunc(s.text, func(c rune) bool { return !unicode.IsPrint(c) || unicode.IsSpace(c) }), !isURL && !isPath:
		r.errorf(key, s, "%s is no source of an installer; write a URL with https:// or http://, or the absolute path of the file on the nodes", quote(s.text))
	case isURL && u.User != nil:
		r.errorf(key, s, "a URL with a user in it would be seen by everybody who may read the fleet file; leave the user out")
	default:
		return s.text
	}
	return ""
}

func (r reader) runfileSHA256(v *value) string {
	const key = "nvidia_runfile_sha256"
	s, ok := r.text(v, key, `"b2ae..."`)
	switch {
	case !ok:
		return ""
	case !sumPattern.MatchString(s.text):
		r.errorf(key, s, "%s is no SHA-256; write 64 digits as sha256sum prints them", quote(s.text))
		return ""
	}
	return strings.ToLower(s.text)
}

func (r reader) driverVersion(v *value) string {
	const key = "nvidia_driver_version"
	s, ok := r.text(v, key, `"580.76.05"`)
	switch {
	case !ok:
		return ""
	case !versionPattern.MatchString(s.text):
		r.errorf(key, s, "%s is not a driver version; write it as nvidia-smi shows it, for example \"580.76.05\"", quote(s.text))
		return ""
	}
	return s.text
}

// ctid reads a CTID that may be a string or an integer.
func (r reader) ctid(v *value, key string) (int32, bool) {
	if v.kind != text && v.kind != number {
		r.errorf(key, v, "want a CTID such as \"900\", got %s", got(v))
		return 0, false
	}
	ctid, ok := parseCTID(v.text)
	switch {
	case !ok && v.text == "":
		r.errorf(key, v, "\"\" is not a CTID; leave it out if there is none")
	case !ok && v.kind == number:
		r.errorf(key, v, "%s is not a CTID; %s", clip(v.text), ctidForm)
	case !ok:
		r.errorf(key, v, "%s is not a CTID; %s", quote(v.text), ctidForm)
	}
	return ctid, ok
}

func (r reader) cloneFrom(v *value) (int32, []edge) {
	const key = "clone_from_ctid"
	m := v.member(key)
	if m == nil || m.value.kind == null {
		return 0, nil
	}
	ctid, ok := r.ctid(m.value, key)
	switch {
	case !ok:
		return 0, nil
	case ctid == r.at.ctid:
		r.errorf(key, m.value, "%d cannot be cloned from itself", ctid)
		return 0, nil
	}
	return ctid, []edge{{ctid, true, r.place(key, m.value)}}
}

func (r reader) dependencies(v *value) (ctids []int32, edges []edge) {
	const key = "dependencies"
	m := v.member(key)
	if m == nil || m.value.kind == null {
		return nil, nil
	}
	if m.value.kind != list {
		r.errorf(key, m.value, "want a list such as [\"900\"], got %s", got(m.value))
		return nil, nil
	}
	for _, item := range m.value.items {
		ctid, ok := r.ctid(item, key)
		switch {
		case !ok:
		case ctid == r.at.ctid:
			r.errorf(key, item, "%d cannot depend on itself", ctid)
		case slices.Contains(ctids, ctid):
			r.warnf(key, item, "%d appears twice", ctid)
		default:
			ctids = append(ctids, ctid)
			edges = append(edges, edge{ctid, false, r.place(key, item)})
		}
	}
	return ctids, edges
}

func (r reader) features(v *value) []string {
	const key, longest = "features", 128
	m := v.member(key)
	if m == nil || m.value.kind == null {
		return nil
	}
	if m.value.kind != list {
		r.errorf(key, m.value, "want a list such as [\"nvidia\"], got %s", got(m.value))
		return nil
	}
	var names []string
	for _, item := range m.value.items {
		switch {
		case item.kind != text:
			r.errorf(key, item, "want the name of a feature such as \"nvidia\", got %s", got(item))
		case len(item.text) > longest:
			r.errorf(key, item, "%d bytes are too many; the name of a feature has at most %d", len(item.text), longest)
		case !featurePattern.MatchString(item.text):
			r.errorf(key, item, "%s is not the name of a feature; use a to z, 0 to 9, \".\", \"_\" and \"-\", beginning with a letter or digit", quote(item.text))
		case strings.Contains(item.text, ".."):
			r.errorf(key, item, "%s is not the name of a feature; it has two dots in a row", quote(item.text))
		case slices.Contains(names, item.text):
			r.warnf(key, item, "%s appears twice", quote(item.text))
		default:
			names = append(names, item.text)
		}
	}
	return names
}

func (r reader) healthCheck(v *value) *HealthCheck {
	const key = "health_check"
	m := v.member(key)
	if m == nil || m.value.kind == null {
		return nil
	}
	if m.value.kind != object {
		r.errorf(key, m.value, "want an object such as {\"command\": \"pidof init\"}, got %s", got(m.value))
		return nil
	}
	return &HealthCheck{
		Command:  r.command(m.value),
		Retries:  r.integer(m.value, "health_check.retries", 100, defaultRetries),
		Interval: time.Duration(r.integer(m.value, "health_check.interval", 3600, int(defaultInterval/time.Second))) * time.Second,
		Timeout:  time.Duration(r.integer(m.value, "health_check.timeout", 3600, int(defaultTimeout/time.Second))) * time.Second,
	}
}

func (r reader) command(v *value) string {
	const key, longest = "health_check.command", 64 << 10
	m := v.member("command")
	switch {
	case m == nil:
		r.errorf(key, v, "missing; it is what is run in the container")
	case m.value.kind != text:
		r.errorf(key, m.value, "want a string such as \"pidof init\", got %s", got(m.value))
	case strings.TrimSpace(m.value.text) == "":
		r.errorf(key, m.value, "empty; leave health_check out if there is none")
	case len(m.value.text) > longest:
		r.errorf(key, m.value, "%d bytes are too many; a command has at most %d", len(m.value.text), longest)
	case strings.ContainsRune(m.value.text, 0):
		r.errorf(key, m.value, "holds a NUL, which no command can have")
	default:
		return m.value.text
	}
	return ""
}

// integer reads a number from 1 to most.
func (r reader) integer(v *value, key string, most, byDefault int) int {
	_, last, _ := strings.Cut(key, ".")
	m := v.member(last)
	if m == nil || m.value.kind == null {
		return byDefault
	}
	if m.value.kind != number {
		r.errorf(key, m.value, "want an integer from 1 to %d, got %s", most, got(m.value))
		return byDefault
	}
	n, err := strconv.Atoi(m.value.text)
	if err != nil || n < 1 || n > most {
		r.errorf(key, m.value, "%s is out of range; want an integer from 1 to %d", clip(m.value.text), most)
		return byDefault
	}
	return n
}
