// Package pkitest makes certificate authorities and certificates for tests.
package pkitest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"phoenix.internal/controller/pki"
)

// A CA is a certificate authority with its files in a temporary directory.
type CA struct {
	File string // its certificate, PEM
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// A Leaf is a certificate to issue. The zero value is valid for an hour, for "localhost" and 127.0.0.1.
type Leaf struct {
	Name     string // common name, DNS name besides localhost, and stem of the files
	URI      string
	Purposes []pki.Purpose // default: both
	NotAfter time.Time     // default: in an hour
}

// NewCA makes an authority whose common name is name.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	ca := &CA{dir: t.TempDir(), key: newKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-2 * time.Hour),
		NotAfter:     time.Now().Add(2 * time.Hour),
		IsCA:         true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	check(t, err)
	ca.cert, err = x509.ParseCertificate(der)
	check(t, err)
	ca.File = filepath.Join(ca.dir, "ca.pem")
	write(t, ca.File, "CERTIFICATE", der, 0o644)
	return ca
}

// Issue makes a certificate and returns its files, with the authority's own as CAFile.
func (ca *CA) Issue(t testing.TB, l Leaf) pki.Files {
	t.Helper()
	if l.Purposes == nil {
		l.Purposes = []pki.Purpose{pki.Serve, pki.Call}
	}
	if l.NotAfter.IsZero() {
		l.NotAfter = time.Now().Add(time.Hour)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: l.Name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     l.NotAfter,
		DNSNames:     []string{l.Name, "localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	if l.URI != "" {
		u, err := url.Parse(l.URI)
		check(t, err)
		template.URIs = []*url.URL{u}
	}
	for _, p := range l.Purposes {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsage(p))
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	check(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	check(t, err)

	dir, err := os.MkdirTemp(ca.dir, "leaf-*")
	check(t, err)
	files := pki.Files{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem"), CAFile: ca.File}
	write(t, files.CertFile, "CERTIFICATE", der, 0o644)
	write(t, files.KeyFile, "PRIVATE KEY", keyDER, 0o600)
	return files
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	return key
}

func write(t testing.TB, path, kind string, der []byte, mode os.FileMode) {
	t.Helper()
	check(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode))
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
