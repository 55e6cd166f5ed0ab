package agenttest

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// Dial connects to the node's agent as a client of its authority.
func (n *Node) Dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	return Dial(t, n.Address, n.CA.ClientTLS(t, "tester", n.Name))
}

// Dial connects to a server; the connection is closed when the test ends.
func Dial(t testing.TB, address string, cfg *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(cfg)), grpc.WithNoProxy())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Errorf("close connection: %v", err)
		}
	})
	return conn
}

// ClientTLS is the configuration of a client called name that expects a server called serverName.
func (ca *CA) ClientTLS(t testing.TB, name, serverName string) *tls.Config {
	t.Helper()
	return LoadTLS(t, ca.Issue(t, name, Client), serverName)
}

// LoadTLS is the configuration of a client with the given files.
func LoadTLS(t testing.TB, files Files, serverName string) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(files.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("%s: no certificate", files.CAFile)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: serverName,
	}
}
