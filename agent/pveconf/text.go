package pveconf

import (
	"math/bits"
	"strings"
	"unicode/utf8"
)

// decodeText is Proxmox's decode_text (PVE::ParseUtils): percent-decoding, then UTF-8 as Perl reads it. The
// result can hold surrogates and code points beyond Unicode, and then is not UTF-8 for Go.
func decodeText(s string) string {
	return decodeUTF8(unescape(s))
}

// unescape is Perl's uri_unescape.
func unescape(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) && unhex(s[i+1]) >= 0 && unhex(s[i+2]) >= 0 {
			b.WriteByte(byte(unhex(s[i+1])<<4 | unhex(s[i+2])))
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// unhex returns the value of a hex digit, or -1.
func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// decodeUTF8 is Perl's decode("utf8", s), as in Perl 5.36: it keeps what Perl can encode, which is more than
// Unicode, and puts U+FFFD for each malformed sequence.
func decodeUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for s != "" {
		n, ok := perlChar(s)
		if ok {
			b.WriteString(s[:n])
		} else {
			b.WriteRune(utf8.RuneError)
		}
		s = s[n:]
	}
	return b.String()
}

// perlChar returns the length of the character, or malformed sequence, that s begins with. Perl's UTF-8 goes on
// as the first design of it did, to 36 bits in 7 bytes, and from there to 63 bits in 13 bytes after 0xff.
func perlChar(s string) (n int, ok bool) {
	if s[0] < utf8.RuneSelf {
		return 1, true
	}
	wants := bits.LeadingZeros8(^s[0]) // 1 for a continuation byte
	value := uint64(s[0]) & (0x7f >> wants)
	if wants == 8 {
		wants, value = 13, 0
	}
	overflow := false
	for n = 1; n < min(wants, len(s)) && s[n]&0xc0 == 0x80; n++ {
		overflow = overflow || value >= 1<<57
		value = value<<6 | uint64(s[n]&0x3f)
	}
	if wants > 1 && n == wants && !overflow && value >= perlLeast[wants] {
		return n, true
	}
	if slipped := perlSlip(s); slipped > 0 {
		return slipped, false
	}
	return n, false
}

// perlLeast is the least value that needs so many bytes.
var perlLeast = [14]uint64{2: 1 << 7, 3: 1 << 11, 4: 1 << 16, 5: 1 << 21, 6: 1 << 26, 7: 1 << 31, 13: 1 << 36}

// perlSlip returns how many bytes one U+FFFD stands for where Perl 5.36 slips, and 0 where it does not. Perl
// overlooks that s does not begin with a first byte, takes the second byte for that of another class, and swallows
// what would be a good sequence if it were (inline.h, utf8n_to_uvchr_msgs: PL_strict_utf8_dfa_tab, whose state 1
// means "reject", is entered with this state at the class of the second byte, which finds that of the next class).
func perlSlip(s string) int {
	if len(s) < 3 || 0xc2 <= s[0] && s[0] <= 0xf4 && s[0] != 0xed {
		return 0
	}
	first := s[1]
	switch {
	case first < 0xc0 || first == 0xf0:
		return 0
	case first < 0xc2 || first == 0xed || first >= 0xf5:
		first = 0xc2
	case first < 0xe0:
		first = 0xe1
	case first == 0xe0:
		first = 0xf0
	case first < 0xef:
		first = 0xef
	case first == 0xef:
		first = 0xf4
	case first < 0xf4:
		first = 0xe0
	default:
		first = 0xf1
	}
	r, n := utf8.DecodeRuneInString(string([]byte{first}) + s[2:min(len(s), 5)])
	nonCharacter := r&0xfffe == 0xfffe || 0xfdd0 <= r && r <= 0xfdef
	if r == utf8.RuneError && n == 1 || nonCharacter {
		return 0
	}
	return 1 + n
}

const upperHex = "0123456789ABCDEF"

// appendEncoded is Proxmox's encode_text: "%", ":", control characters and all that is not ASCII become %XX.
func appendEncoded(out []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c > 0x7e || c == '%' || c == ':' {
			out = append(out, '%', upperHex[c>>4], upperHex[c&0xf])
		} else {
			out = append(out, c)
		}
	}
	return out
}
