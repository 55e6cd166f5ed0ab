package sandbox

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"embed"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"phoenix.internal/deploy/sandbox/nvidia"
)

//go:embed features
var sampleFeatures embed.FS

// Ports of the agents and their files, all below the sandbox's folder.
const (
	agentPort       = 7461
	pkiDir          = "pki"
	logDir          = "log"
	controllerFile  = "controller.yaml"
	cliFile         = "cli.yaml"
	controllerState = "controller"
)

// CLIConfigPath is a configuration for phoenix-cli, the same as the one at Options.CLIConfig.
func (s *Sandbox) CLIConfigPath() string { return filepath.Join(s.Dir, cliFile) }

// ControllerConfigPath is the configuration of the controller.
func (s *Sandbox) ControllerConfigPath() string { return filepath.Join(s.Dir, controllerFile) }

// PKI is where a party's certificate files lie: NAME.pem, NAME-key.pem, and ca.pem.
func (s *Sandbox) PKI(file string) string { return filepath.Join(s.Dir, pkiDir, file) }

// writeConfigs makes the certificates and the configurations of controller and CLI.
func (s *Sandbox) writeConfigs(o Options) error {
	for _, dir := range []string{pkiDir, logDir, controllerState} {
		if err := os.MkdirAll(filepath.Join(s.Dir, dir), 0o755); err != nil {
			return err
		}
	}
	if err := s.writePKI(); err != nil {
		return err
	}
	features := o.FeaturesDir
	if features == "" {
		features = filepath.Join(s.Dir, "features")
		if err := writeSamples(features); err != nil {
			return err
		}
	}
	var nodes strings.Builder
	for _, n := range s.Nodes {
		fmt.Fprintf(&nodes, "  - name: %s\n    address: %s:%d\n", n.Name, n.Address, agentPort)
	}
	fleet := ""
	if s.Fleet != "" {
		fleet = fmt.Sprintf("fleet_file: %q\n", s.Fleet)
	}
	controller := fmt.Sprintf("%s\nlisten: %q\nnodes:\n%s%sfeatures_dir: %q\nstate_dir: %q\n%s",
		ourMark(s.Dir), s.Controller, nodes.String(), fleet, features, filepath.Join(s.Dir, controllerState), s.tlsConfig("controller"))
	if err := writeFile(s.ControllerConfigPath(), controller, 0o644); err != nil {
		return err
	}
	cli := fmt.Sprintf("%s\ncontroller: %q\n%s", ourMark(s.Dir), s.Controller, s.tlsConfig("cli"))
	if err := writeFile(s.CLIConfigPath(), cli, 0o644); err != nil {
		return err
	}
	if s.CLIConfig == "" {
		return nil
	}
	return writeFile(s.CLIConfig, cli, 0o644)
}

func (s *Sandbox) tlsConfig(party string) string {
	return fmt.Sprintf("tls:\n  cert_file: %q\n  key_file: %q\n  ca_file: %q\n",
		s.PKI(party+".pem"), s.PKI(party+"-key.pem"), s.PKI("ca.pem"))
}

// writeAgentConfig fills a node's /etc/phoenix.
func (s *Sandbox) writeAgentConfig(n *Node) error {
	etc := filepath.Join(s.NodeDir(n.Name), "etc-phoenix")
	for from, to := range map[string]string{n.Name + ".pem": "agent.pem", n.Name + "-key.pem": "agent-key.pem", "ca.pem": "ca.pem"} {
		if err := copyFile(s.PKI(from), filepath.Join(etc, "tls", to), 0o600); err != nil {
			return err
		}
	}
	sources := ""
	if s.Fleet != "" { // only then are there containers that drivers are installed in
		sources = "driver_sources: [" + installersDir + "/]\n"
	}
	return writeFile(filepath.Join(etc, "agent.yaml"), ourMark(s.Dir)+`
kernel_log: `+nvidia.KernelLogFile+`
nvml_program: /usr/bin/phoenix-nvml
tls:
  cert_file: /etc/phoenix/tls/agent.pem
  key_file: /etc/phoenix/tls/agent-key.pem
  ca_file: /etc/phoenix/tls/ca.pem
`+sources, 0o644)
}

func writeSamples(dir string) error {
	return fs.WalkDir(sampleFeatures, "features", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := sampleFeatures.ReadFile(path)
		if err != nil {
			return err
		}
		return writeFile(filepath.Join(dir, filepath.Base(path)), string(b), 0o755)
	})
}

// writePKI makes an authority and a certificate each for the agents, the controller and the CLI. They
// last a year; the authority's key is not kept.
func (s *Sandbox) writePKI() error {
	ca, err := newAuthority("Phoenix sandbox " + s.Name)
	if err != nil {
		return err
	}
	if err := writePEM(s.PKI("ca.pem"), "CERTIFICATE", ca.cert.Raw, 0o644); err != nil {
		return err
	}
	const serve, call = x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth
	local := []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	if err := ca.issue(s.PKI("controller"), ControllerName, []string{ControllerName, "localhost"}, local, serve, call); err != nil {
		return err
	}
	if err := ca.issue(s.PKI("cli"), "phoenix-cli", nil, nil, call); err != nil {
		return err
	}
	for _, n := range s.Nodes {
		ips := append([]net.IP{net.ParseIP(n.Address)}, local...)
		if err := ca.issue(s.PKI(n.Name), n.Name, []string{n.Name}, ips, serve); err != nil {
			return err
		}
	}
	return nil
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

const certificateLife = 365 * 24 * time.Hour

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(certificateLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

// issue writes PATH.pem and PATH-key.pem.
func (a *authority) issue(path, name string, dns []string, ips []net.IP, usages ...x509.ExtKeyUsage) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(certificateLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usages,
		DNSNames:              dns,
		IPAddresses:           ips,
		BasicConstraintsValid: true,
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(path+".pem", "CERTIFICATE", der, 0o644); err != nil {
		return err
	}
	return writePEM(path+"-key.pem", "PRIVATE KEY", private, 0o600)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
