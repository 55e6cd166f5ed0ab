// Package pki makes TLS settings from certificate files. Everything it makes is mutual TLS 1.3 with one's own
// authority: there is no setting that loosens it, and the system's pool of authorities is never used.
package pki

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Files names the PEM files of one party. The keys in errors are those of the configuration files.
type Files struct {
	CertFile string `mapstructure:"cert_file"` // own certificate, then intermediates if there are any
	KeyFile  string `mapstructure:"key_file"`  // its private key; no access for others
	CAFile   string `mapstructure:"ca_file"`   // the authorities that peers must come from
}

// A Purpose is what a certificate is used for.
type Purpose x509.ExtKeyUsage

// The purposes.
const (
	Serve Purpose = Purpose(x509.ExtKeyUsageServerAuth) // to accept connections
	Call  Purpose = Purpose(x509.ExtKeyUsageClientAuth) // to make connections
)

func (p Purpose) String() string {
	if p == Serve {
		return "serverAuth"
	}
	return "clientAuth"
}

// Credentials are loaded and checked certificate files.
type Credentials struct {
	leaf tls.Certificate
	pool *x509.CertPool
}

// Load reads the files and checks that key and certificate are a pair, that the certificate is valid now, comes from
// the authority and is made for each purpose, and that nobody but owner and group may read the key. It reports every
// problem that it finds, joined, each with the key of its setting: "tls.cert_file: /etc/x.pem: no such file or
// directory".
func (f Files) Load(purposes ...Purpose) (*Credentials, error) {
	certPEM, certErr := read("tls.cert_file", f.CertFile)
	keyPEM, keyErr := readKey(f.KeyFile)
	caPEM, caErr := read("tls.ca_file", f.CAFile)

	var chain, authorities []*x509.Certificate
	if certErr == nil {
		chain, certErr = parse("tls.cert_file", f.CertFile, certPEM)
	}
	if caErr == nil {
		authorities, caErr = parse("tls.ca_file", f.CAFile, caPEM)
	}
	for _, c := range authorities {
		if !c.IsCA {
			caErr = fmt.Errorf("tls.ca_file: %s: the certificate of %q is not an authority's", f.CAFile, Identity(c))
		}
	}
	c := &Credentials{pool: x509.NewCertPool()}
	if certErr == nil && keyErr == nil {
		if c.leaf, keyErr = tls.X509KeyPair(certPEM, keyPEM); keyErr != nil {
			keyErr = fmt.Errorf("tls.key_file: %s: no key for the certificate in %s: %w", f.KeyFile, f.CertFile, plain(keyErr))
		}
	}
	if certErr == nil && caErr == nil {
		for _, a := range authorities {
			c.pool.AddCert(a)
		}
		if certErr = verify(chain, c.pool, purposes, f.CAFile); certErr != nil {
			certErr = fmt.Errorf("tls.cert_file: %s: %w", f.CertFile, certErr)
		}
	}
	if err := errors.Join(certErr, keyErr, caErr); err != nil {
		return nil, err
	}
	return c, nil
}

func read(key, path string) ([]byte, error) {
	if path == "" {
		return nil, fmt.Errorf("%s: not set", key)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fileError(key, path, err)
	}
	return b, nil
}

// readKey allows the group to read, since that is what systemd's LoadCredential= and Debian's ssl-cert group give.
func readKey(path string) ([]byte, error) {
	const key, forbidden = "tls.key_file", 0o037
	b, err := read(key, path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fileError(key, path, err)
	}
	if mode := info.Mode().Perm(); mode&forbidden != 0 {
		return nil, fmt.Errorf("%s: %s: mode %#o lets others at the key; chmod 0600 it", key, path, mode)
	}
	return b, nil
}

func fileError(key, path string, err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		err = e.Err
	}
	return fmt.Errorf("%s: %s: %w", key, path, err)
}

func parse(key, path string, b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := bytes.TrimSpace(b); len(rest) > 0; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", key, path, plain(err))
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s: %s: holds no PEM certificate", key, path)
	}
	return certs, nil
}

func verify(chain []*x509.Certificate, pool *x509.CertPool, purposes []Purpose, caFile string) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	opts := x509.VerifyOptions{
		Roots: pool, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	if _, err := chain[0].Verify(opts); err != nil {
		return explained(err, caFile)
	}
	for _, p := range purposes {
		opts.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsage(p)}
		if _, err := chain[0].Verify(opts); err != nil {
			return fmt.Errorf("it is not made for %s; make one with that extended key usage", p)
		}
	}
	return nil
}

// explained says what is wrong with our own certificate and what to do.
func explained(err error, caFile string) error {
	const minute = "2006-01-02 15:04 UTC"
	e, _ := errors.AsType[x509.CertificateInvalidError](err)
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	switch {
	case unknown:
		return fmt.Errorf("it is not from the authority in %s; take a certificate from there, or its own authority for tls.ca_file", caFile)
	case e.Cert == nil || e.Reason != x509.Expired:
		return plain(err)
	case e.Cert.IsCA:
		return fmt.Errorf("the certificate of its authority %q is valid from %s to %s only; renew it, or set the clock",
			Identity(e.Cert), e.Cert.NotBefore.UTC().Format(minute), e.Cert.NotAfter.UTC().Format(minute))
	case time.Now().Before(e.Cert.NotBefore):
		return fmt.Errorf("it is valid from %s only; set the clock, or renew it", e.Cert.NotBefore.UTC().Format(minute))
	}
	return fmt.Errorf("it expired at %s; renew it, or set the clock", e.Cert.NotAfter.UTC().Format(minute))
}

// plain leaves out the name of Go's package.
func plain(err error) error {
	return errors.New(strings.TrimPrefix(strings.TrimPrefix(err.Error(), "tls: "), "x509: "))
}

// Server returns the settings of a listener: a peer must show a certificate for [Call] from the authority.
func (c *Credentials) Server() *tls.Config {
	t := c.base()
	t.ClientAuth = tls.RequireAndVerifyClientCert
	t.ClientCAs = c.pool
	return t
}

// Client returns the settings of a caller: the server must show a certificate for [Serve] from the authority with
// the name that is dialled, or with serverName if that is not empty.
func (c *Credentials) Client(serverName string) *tls.Config {
	t := c.base()
	t.RootCAs = c.pool
	t.ServerName = serverName
	return t
}

func (c *Credentials) base() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true, // a resumed handshake does not look at the chain again
		NextProtos:             []string{"h2"},
		Certificates:           []tls.Certificate{c.leaf},
	}
}

// Identity returns the name that a certificate stands for: its URI if it has exactly one, else its common name.
func Identity(c *x509.Certificate) string {
	if len(c.URIs) == 1 {
		return c.URIs[0].String()
	}
	return c.Subject.CommonName
}
