package pki

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Explain says what is wrong with a certificate, in which file, and what to do, from the text of a failed connection;
// "" if that is not about certificates. peer is the other side, "the agent" say, who was to have a certificate for name.
//
// It goes by text because that is all grpc leaves of the errors of crypto/tls and crypto/x509; TestExplain makes them.
func Explain(text, peer, name string) string {
	for _, e := range []struct{ sign, says string }{
		{"remote error: tls: expired certificate", "PEER refuses our certificate, which has expired; renew tls.cert_file here"},
		{"remote error: tls: unknown certificate authority", "PEER refuses our certificate, which is from another authority; check tls.cert_file here and tls.ca_file there"},
		{"remote error: tls: no application protocol", "something else than PEER listens there; check the address"},
		{"remote error: tls: protocol version", "something else than PEER listens there, without TLS 1.3; check the address"},
		{"remote error: tls:", "PEER refuses our certificate; check tls.cert_file here and tls.ca_file there"},
		{"first record does not look like a TLS handshake", "something else than PEER listens there, without TLS; check the address"},
		{"missing selected ALPN", "something else than PEER listens there; check the address"},
		{"certificate is valid for", "another host answers, or PEER's certificate is not made for the name NAME; check the address here and tls.cert_file there"},
		{"not valid for any names", "another host answers, or PEER's certificate is not made for the name NAME; check the address here and tls.cert_file there"},
		{"doesn't contain any IP SANs", "another host answers, or PEER's certificate is not made for the name NAME; check the address here and tls.cert_file there"},
		{"unknown authority", "PEER's certificate is from another authority; check tls.ca_file here and tls.cert_file there"},
		{"expired or is not yet valid", "PEER's certificate has expired, or a clock is wrong; renew tls.cert_file there"},
		{"incompatible key usage", "PEER's certificate is not made for servers (extended key usage serverAuth); make that of tls.cert_file there anew"},
	} {
		if strings.Contains(text, e.sign) {
			return strings.NewReplacer("PEER", peer, "NAME", fmt.Sprintf("%q", name)).Replace(e.says)
		}
	}
	return ""
}

// wrapping is what grpc and net put around the cause of a broken connection.
var wrapping = regexp.MustCompile(`^(connection error: desc = |transport: |Error while dialing: |authentication handshake failed: |` +
	`error reading (from server|server preface): |closing transport due to: |tls: failed to verify certificate: |x509: |` +
	`dial tcp: |(dial|read|write) tcp [^ ]+: |(connect|read|write): )`)

// Cause returns what is left of grpc's text about a broken connection without the wrapping.
func Cause(text string) string {
	for {
		rest := strings.TrimPrefix(text, wrapping.FindString(text))
		if quoted, err := strconv.QuotedPrefix(rest); err == nil {
			rest, _ = strconv.Unquote(quoted) //nolint:errcheck // it is quoted
		}
		if rest == text {
			text, _, _ = strings.Cut(text, " (possibly because of") // crypto/x509's guess
			return text
		}
		text = rest
	}
}
