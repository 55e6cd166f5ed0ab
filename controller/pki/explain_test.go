package pki_test

import (
	"crypto/tls"
	"errors"
	"net"
	"testing"
	"time"

	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
)

// Each handshake fails for real, and what crypto/tls says of it is explained.
func TestExplain(t *testing.T) {
	ca, other := pkitest.NewCA(t, "test CA"), pkitest.NewCA(t, "other CA")
	past := time.Now().Add(-time.Minute)
	settings := func(ca *pkitest.CA, l pkitest.Leaf) *tls.Config {
		own := ca.Issue(t, l)
		cert, err := tls.LoadX509KeyPair(own.CertFile, own.KeyFile)
		if err != nil {
			t.Fatal(err)
		}
		good, err := ca.Issue(t, pkitest.Leaf{Name: "x"}).Load()
		if err != nil {
			t.Fatal(err)
		}
		conf := good.Server()
		conf.RootCAs = conf.ClientCAs
		conf.Certificates = nil
		conf.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
		// As given: otherwise a client does not show what the server would not take.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }
		conf.ServerName = "pve1"
		return conf
	}
	trusting := func(whom, as *pkitest.CA) *tls.Config { // a client
		conf := settings(as, pkitest.Leaf{Name: "controller"})
		conf.RootCAs = settings(whom, pkitest.Leaf{Name: "x"}).RootCAs
		return conf
	}
	plain := settings(ca, pkitest.Leaf{Name: "pve1"})
	noALPN := settings(ca, pkitest.Leaf{Name: "pve1"})
	noALPN.NextProtos = []string{"other"}
	tests := []struct {
		name           string
		server, client *tls.Config
		want           string
	}{
		{"good", settings(ca, pkitest.Leaf{Name: "pve1"}), settings(ca, pkitest.Leaf{Name: "controller"}), ""},
		{"other name", settings(ca, pkitest.Leaf{Name: "pve2"}), settings(ca, pkitest.Leaf{Name: "controller"}),
			`another host answers, or the agent's certificate is not made for the name "pve1"; check the address here and tls.cert_file there`},
		{"server expired", settings(ca, pkitest.Leaf{Name: "pve1", NotAfter: past}), settings(ca, pkitest.Leaf{Name: "controller"}),
			"the agent's certificate has expired, or a clock is wrong; renew tls.cert_file there"},
		{"server only calls", settings(ca, pkitest.Leaf{Name: "pve1", Purposes: []pki.Purpose{pki.Call}}), settings(ca, pkitest.Leaf{Name: "controller"}),
			"the agent's certificate is not made for servers (extended key usage serverAuth); make that of tls.cert_file there anew"},
		{"server of another authority", settings(other, pkitest.Leaf{Name: "pve1"}), settings(ca, pkitest.Leaf{Name: "controller"}),
			"the agent's certificate is from another authority; check tls.ca_file here and tls.cert_file there"},
		{"client expired", settings(ca, pkitest.Leaf{Name: "pve1"}), settings(ca, pkitest.Leaf{Name: "controller", NotAfter: past}),
			"the agent refuses our certificate, which has expired; renew tls.cert_file here"},
		{"client of another authority", settings(ca, pkitest.Leaf{Name: "pve1"}), trusting(ca, other),
			"the agent refuses our certificate, which is from another authority; check tls.cert_file here and tls.ca_file there"},
		{"client only serves", settings(ca, pkitest.Leaf{Name: "pve1"}), settings(ca, pkitest.Leaf{Name: "controller", Purposes: []pki.Purpose{pki.Serve}}),
			"the agent refuses our certificate; check tls.cert_file here and tls.ca_file there"},
		{"another protocol", noALPN, settings(ca, pkitest.Leaf{Name: "controller"}),
			"something else than the agent listens there; check the address"},
		{"old TLS", &tls.Config{MaxVersion: tls.VersionTLS12, GetCertificate: plain.GetCertificate}, settings(ca, pkitest.Leaf{Name: "controller"}),
			"something else than the agent listens there, without TLS 1.3; check the address"},
		{"no TLS", nil, settings(ca, pkitest.Leaf{Name: "controller"}),
			"something else than the agent listens there, without TLS; check the address"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := handshake(t, tt.server, tt.client)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if got := pki.Explain(text, "the agent", "pve1"); got != tt.want || (err == nil) != (tt.want == "") {
				t.Errorf("%v\n got %s\nwant %s", err, got, tt.want)
			}
		})
	}
	if got := pki.Explain("connect: connection refused", "the agent", "pve1"); got != "" {
		t.Errorf("what is no matter of certificates: %s", got)
	}
}

// handshake returns what the client learns. Without settings the server answers with a line of text.
func handshake(t *testing.T, server, client *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if server == nil {
			c.Write([]byte("220 mail.example ready\r\n")) //nolint:errcheck // the client looks at it
			c.Read(make([]byte, 1000))                    //nolint:errcheck // until the client leaves
			return
		}
		s := tls.Server(c, server)
		if s.Handshake() == nil {
			s.Write([]byte("x")) //nolint:errcheck // likewise
		}
		c.Read(make([]byte, 1000)) //nolint:errcheck // likewise
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil { // in TLS 1.3 the server looks at the client's certificate after the client is done
		_, err = c.Read(make([]byte, 1))
		err = errors.Join(err, c.Close())
	}
	l.Close()
	<-served
	return err
}

func TestCause(t *testing.T) {
	for text, want := range map[string]string{
		`connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: connection refused"`:            "connection refused",
		`connection error: desc = "transport: Error while dialing: dial tcp: lookup pve9 on 192.0.2.1:53: no such host"`:          "lookup pve9 on 192.0.2.1:53: no such host",
		`connection error: desc = "transport: authentication handshake failed: tls: failed to verify certificate: x509: a \"b\""`: `a "b"`,
		`error reading from server: read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer`:                            "connection reset by peer",
		`x509: certificate signed by unknown authority (possibly because of "x509: ECDSA verification failure")`:                  "certificate signed by unknown authority",
		"the disk is full": "the disk is full",
		"":                 "",
	} {
		if got := pki.Cause(text); got != want {
			t.Errorf("Cause(%s)\n got %s\nwant %s", text, got, want)
		}
	}
}
