package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A value is one JSON value with the offset at which it begins.
type value struct {
	kind    kind
	offset  int32
	text    string   // of a string, decoded; of a number, as written; of a boolean
	members []member // of an object, in the order of the file
	items   []*value // of a list
}

type member struct {
	key    string
	offset int32 // of the key
	value  *value
}

type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	list
	object
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "an object"}[k]
}

// member returns the value of a key, or nil. Of equal keys, which are errors, the first counts.
func (v *value) member(key string) *member {
	for i := range v.members {
		if v.members[i].key == key {
			return &v.members[i]
		}
	}
	return nil
}

// decode reads the whole of b as one JSON value. It returns nil, and reports why, unless b is entirely within the
// grammar and the limits. Duplicate keys are reported, and do not stop it.
func decode(b []byte, r *report) *value {
	if len(b) > MaxBytes {
		r.errorf(place{offset: -1}, "%d bytes are too many; a fleet file has at most %d (8 MiB)", len(b), MaxBytes)
		return nil
	}
	if len(bytes.TrimLeft(b, " \t\r\n")) == 0 {
		r.errorf(place{offset: -1}, "the file is empty; a fleet file is at least {\"lxc_configs\": {}}")
		return nil
	}
	for _, bom := range []struct{ bytes, name string }{
		{"\xef\xbb\xbf", "a byte order mark"},
		{"\xff\xfe", "the byte order mark of UTF-16"},
		{"\xfe\xff", "the byte order mark of UTF-16"},
	} {
		if bytes.HasPrefix(b, []byte(bom.bytes)) {
			r.errorf(place{}, "the file begins with %s; save it as UTF-8 without one", bom.name)
			return nil
		}
	}
	if i := invalidUTF8(b); i >= 0 {
		r.errorf(place{offset: i}, "byte 0x%02x is not UTF-8; save the file as UTF-8", b[i])
		return nil
	}
	if i := tooDeep(b); i >= 0 {
		r.errorf(place{offset: i}, "objects and lists are nested deeper than %d levels", maxDepth)
		return nil
	}
	if err := json.Unmarshal(b, new(json.RawMessage)); err != nil {
		offset, message := syntaxError(b, err)
		r.errorf(place{offset: offset}, "%s", message)
		return nil
	}
	d := &decoder{text: b, tokens: json.NewDecoder(bytes.NewReader(b)), report: r}
	d.tokens.UseNumber()
	v := d.value(d.next())
	if d.values > maxValues {
		r.errorf(place{offset: -1}, "more than %d values", maxValues)
		return nil
	}
	return v
}

func invalidUTF8(b []byte) int {
	for i := 0; i < len(b); {
		c, n := utf8.DecodeRune(b[i:])
		if c == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return -1
}

// tooDeep returns the offset of the bracket that goes too deep, or -1. It looks before anything recurses, so it must
// also do for what is not JSON; brackets in strings do not count.
func tooDeep(b []byte) int {
	depth, inString := 0, false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return i
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return -1
}

// syntaxError says where b stops being JSON, and what would help.
func syntaxError(b []byte, err error) (offset int, message string) {
	syntax, ok := errors.AsType[*json.SyntaxError](err)
	if !ok {
		return -1, "not JSON: " + err.Error()
	}
	if strings.HasPrefix(syntax.Error(), "unexpected end") {
		return len(b), "not JSON: the file ends too early; a closing bracket or quote is missing"
	}
	offset = int(syntax.Offset) - 1
	return offset, "not JSON: " + syntax.Error() + syntaxHint(b, offset, syntax.Error())
}

func syntaxHint(b []byte, offset int, message string) string {
	before := bytes.TrimRight(b[:offset], " \t\r\n")
	afterComma := bytes.HasSuffix(before, []byte(","))
	rest := b[offset:]
	switch c := b[offset]; {
	case (c == '}' || c == ']') && afterComma:
		return "; remove the comma before it"
	case c == '\'':
		return "; strings take double quotes"
	case c == '/' || c == '#':
		return "; JSON has no comments"
	case strings.Contains(message, "in string literal"):
		return "; a string ends on its line, and has escapes such as \\n and \\t for such characters"
	case c >= '0' && c <= '9' && bytes.HasSuffix(before, []byte("0")):
		return "; numbers do not begin with 0"
	case bytes.HasPrefix(rest, []byte("NaN")), bytes.HasPrefix(rest, []byte("Infinity")):
		return "; JSON has no NaN and no Infinity"
	case bytes.HasPrefix(rest, []byte("None")):
		return "; write null"
	case bytes.HasPrefix(rest, []byte("True")), bytes.HasPrefix(rest, []byte("False")):
		return "; write true or false in lower case"
	case strings.HasSuffix(message, "object key string") && (c == '_' || unicode.IsLetter(rune(c))):
		return "; keys take double quotes"
	case c == '"' && (bytes.HasSuffix(before, []byte(`"`)) || bytes.HasSuffix(before, []byte("}")) || bytes.HasSuffix(before, []byte("]"))):
		return "; is a comma missing before it?"
	case len(bytes.TrimLeft(b[:offset], " \t\r\n")) > 0 && strings.HasPrefix(string(rest), "{") && bytes.HasSuffix(before, []byte("}")):
		return "; a fleet file is a single object"
	}
	return ""
}

// A decoder builds the values of a text that is known to be JSON: encoding/json has the grammar, this has the offsets.
type decoder struct {
	text   []byte
	tokens *json.Decoder
	report *report
	values int
	path   []string // keys of the objects around what is being read
}

// next returns the next token and the offset at which it begins.
func (d *decoder) next() (json.Token, int) {
	offset := int(d.tokens.InputOffset())
	for offset < len(d.text) && strings.IndexByte(" \t\r\n,:", d.text[offset]) >= 0 {
		offset++
	}
	token, err := d.tokens.Token()
	if err != nil {
		return nil, offset // not reached: the text is JSON
	}
	return token, offset
}

// value returns the value that begins with the given token. Beyond maxValues it returns shells.
func (d *decoder) value(token json.Token, offset int) *value {
	v := &value{offset: int32(offset)}
	d.values++
	switch t := token.(type) {
	case bool:
		v.kind, v.text = boolean, strconv.FormatBool(t)
	case json.Number:
		v.kind, v.text = number, t.String()
	case string:
		v.kind, v.text = text, t
	case json.Delim:
		if t == '[' {
			v.kind = list
			d.items(v)
		} else {
			v.kind = object
			d.object(v)
		}
	}
	return v
}

func (d *decoder) items(v *value) {
	for d.tokens.More() && d.values <= maxValues {
		v.items = append(v.items, d.value(d.next()))
	}
	d.close()
}

func (d *decoder) object(v *value) {
	seen := map[string]int32{}
	for d.tokens.More() && d.values <= maxValues {
		token, offset := d.next()
		key, _ := token.(string)
		first, duplicate := seen[key]
		d.path = append(d.path, key)
		m := member{key, int32(offset), d.value(d.next())}
		d.path = d.path[:len(d.path)-1]
		if duplicate {
			line, _ := d.report.position(int(first))
			d.report.errorf(place{offset: offset, ctid: d.ctid()}, "duplicate key %s; it stands in line %d already", quote(key), line)
			continue
		}
		seen[key] = m.offset
		v.members = append(v.members, m)
	}
	d.close()
}

// ctid returns the container that is being read, or 0.
func (d *decoder) ctid() int32 {
	if len(d.path) < 2 || d.path[0] != "lxc_configs" {
		return 0
	}
	ctid, _ := parseCTID(d.path[1])
	return ctid
}

// close takes the closing bracket, unless there are too many values and nothing more is read.
func (d *decoder) close() {
	if d.values <= maxValues {
		d.next()
	}
}

// quote returns s quoted for a message, cut where it is longer than a person wants to see.
func quote(s string) string {
	const most = 60
	if len(s) <= most {
		return strconv.Quote(s)
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "..."
}
