package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// TLSFiles name the PEM files of the agent's identity.
type TLSFiles struct {
	CertFile string // leaf first, then intermediates
	KeyFile  string
	CAFile   string // the only authority that callers' certificates may come from
}

// TLS loads the files and returns a configuration for TLS 1.3 with client certificates of that authority, and nothing
// else: there is no way to serve without.
func TLS(files TLSFiles) (*tls.Config, error) {
	info, err := os.Stat(files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls.key_file: %w", err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("tls.key_file: %s: others than its owner may use it (mode %#o): chmod 600 %s, and replace the key if somebody may have read it",
			files.KeyFile, mode, files.KeyFile)
	}
	leaf, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("tls.cert_file %s, tls.key_file %s: %w", files.CertFile, files.KeyFile, err)
	}
	pem, err := os.ReadFile(files.CAFile)
	if err != nil {
		return nil, fmt.Errorf("tls.ca_file: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("tls.ca_file: %s: %w", files.CAFile, errors.New("no PEM certificate in it"))
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{leaf},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    pool,
		NextProtos:   []string{"h2"},
		// A resumed handshake does not look at the chain again (CVE-2025-68121).
		SessionTicketsDisabled: true,
	}, nil
}
