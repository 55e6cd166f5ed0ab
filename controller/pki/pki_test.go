package pki_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"phoenix.internal/controller/pki"
	"phoenix.internal/controller/pki/pkitest"
)

func TestLoad(t *testing.T) {
	ca, other := pkitest.NewCA(t, "test CA"), pkitest.NewCA(t, "other CA")
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := ca.Issue(t, pkitest.Leaf{Name: "good"})
	key, err := os.ReadFile(good.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*pki.Files)) pki.Files {
		f := good
		change(&f)
		return f
	}
	past := time.Now().Add(-time.Minute)
	tests := []struct {
		name  string
		files pki.Files
		want  []string // lines of the error, in which CERT, KEY, CA and DIR stand for paths; nil: none
	}{
		{"good", good, nil},
		{"group may read the key", with(func(f *pki.Files) { f.KeyFile = write("group.pem", string(key), 0o640) }), nil},
		{"nothing set", pki.Files{}, []string{
			"tls.cert_file: not set",
			"tls.key_file: not set",
			"tls.ca_file: not set",
		}},
		{"missing files", pki.Files{CertFile: dir + "/a", KeyFile: dir + "/b", CAFile: dir + "/c"}, []string{
			"tls.cert_file: DIR/a: no such file or directory",
			"tls.key_file: DIR/b: no such file or directory",
			"tls.ca_file: DIR/c: no such file or directory",
		}},
		{"directory", with(func(f *pki.Files) { f.CertFile = dir }), []string{"tls.cert_file: DIR: is a directory"}},
		{"world may read the key", with(func(f *pki.Files) { f.KeyFile = write("world.pem", string(key), 0o644) }), []string{
			"tls.key_file: DIR/world.pem: mode 0644 lets others at the key; chmod 0600 it",
		}},
		{"group may write the key", with(func(f *pki.Files) { f.KeyFile = write("writable.pem", string(key), 0o660) }), []string{
			"tls.key_file: DIR/writable.pem: mode 0660 lets others at the key; chmod 0600 it",
		}},
		{"key of another certificate", with(func(f *pki.Files) { f.KeyFile = ca.Issue(t, pkitest.Leaf{Name: "x"}).KeyFile }), []string{
			"tls.key_file: KEY: no key for the certificate in CERT: private key does not match public key",
		}},
		{"no PEM", with(func(f *pki.Files) { f.CertFile = write("empty.pem", "hello\n", 0o644) }), []string{
			"tls.cert_file: DIR/empty.pem: holds no PEM certificate",
		}},
		{"key in place of the certificate", with(func(f *pki.Files) { f.CertFile = good.KeyFile }), []string{
			"tls.cert_file: CERT: holds no PEM certificate",
		}},
		{"half-written certificate", with(func(f *pki.Files) {
			f.CertFile = write("half.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", 0o644)
		}), []string{"tls.cert_file: DIR/half.pem: malformed certificate"}},
		{"leaf in place of the authority", with(func(f *pki.Files) { f.CAFile = good.CertFile }), []string{
			`tls.ca_file: CA: the certificate of "good" is not an authority's`,
		}},
		{"other authority", with(func(f *pki.Files) { f.CAFile = other.File }), []string{
			"tls.cert_file: CERT: it is not from the authority in CA; take a certificate from there, or its own authority for tls.ca_file",
		}},
		{"expired", ca.Issue(t, pkitest.Leaf{Name: "old", NotAfter: past}), []string{
			"tls.cert_file: CERT: it expired at PAST; renew it, or set the clock",
		}},
		{"only to call", ca.Issue(t, pkitest.Leaf{Name: "caller", Purposes: []pki.Purpose{pki.Call}}), []string{
			"tls.cert_file: CERT: it is not made for serverAuth; make one with that extended key usage",
		}},
		{"only to serve", ca.Issue(t, pkitest.Leaf{Name: "server", Purposes: []pki.Purpose{pki.Serve}}), []string{
			"tls.cert_file: CERT: it is not made for clientAuth; make one with that extended key usage",
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.files.Load(pki.Serve, pki.Call)
			if err == nil {
				if tt.want != nil {
					t.Fatalf("no error; want %q", tt.want)
				}
				return
			}
			got := strings.Split(err.Error(), "\n")
			if len(got) != len(tt.want) {
				t.Fatalf("got %d lines, want %d:\n%s", len(got), len(tt.want), err)
			}
			paths := strings.NewReplacer("CERT", tt.files.CertFile, "KEY", tt.files.KeyFile, "CA:", tt.files.CAFile+":", "CA;", tt.files.CAFile+";",
				"DIR", dir, "PAST", past.UTC().Format("2006-01-02 15:04 UTC"))
			for i, line := range got {
				// What the standard library adds is its own affair.
				if want := paths.Replace(tt.want[i]); !strings.HasPrefix(line, want) {
					t.Errorf("line %d\n got %s\nwant %s", i+1, line, want)
				}
			}
		})
	}
}

func TestSettings(t *testing.T) {
	ca := pkitest.NewCA(t, "test CA")
	c, err := ca.Issue(t, pkitest.Leaf{Name: "pve1"}).Load(pki.Serve, pki.Call)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*tls.Config{"server": c.Server(), "client": c.Client("pve2")} {
		if s.MinVersion != tls.VersionTLS13 || !s.SessionTicketsDisabled || s.InsecureSkipVerify || len(s.NextProtos) != 1 || s.NextProtos[0] != "h2" {
			t.Errorf("%s: MinVersion %#x, SessionTicketsDisabled %t, InsecureSkipVerify %t, NextProtos %q; want TLS 1.3, true, false, [h2]",
				name, s.MinVersion, s.SessionTicketsDisabled, s.InsecureSkipVerify, s.NextProtos)
		}
	}
	if s := c.Server(); s.ClientAuth != tls.RequireAndVerifyClientCert || s.ClientCAs == nil {
		t.Errorf("server: ClientAuth %v, ClientCAs set %t; want RequireAndVerifyClientCert with a pool", s.ClientAuth, s.ClientCAs != nil)
	}
	if s := c.Client("pve2"); s.ServerName != "pve2" || s.RootCAs == nil {
		t.Errorf("client: ServerName %q, RootCAs set %t; want pve2 with a pool", s.ServerName, s.RootCAs != nil)
	}
}

func TestIdentity(t *testing.T) {
	a, b := &url.URL{Scheme: "spiffe", Host: "fleet", Path: "/operator/ann"}, &url.URL{Scheme: "spiffe", Host: "fleet", Path: "/admin/ann"}
	tests := []struct {
		name string
		cert *x509.Certificate
		want string
	}{
		{"common name", &x509.Certificate{Subject: pkix.Name{CommonName: "ann"}}, "ann"},
		{"URI wins", &x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, URIs: []*url.URL{a}}, "spiffe://fleet/operator/ann"},
		{"several URIs say nothing", &x509.Certificate{Subject: pkix.Name{CommonName: "ann"}, URIs: []*url.URL{a, b}}, "ann"},
	}
	for _, tt := range tests {
		if got := pki.Identity(tt.cert); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
