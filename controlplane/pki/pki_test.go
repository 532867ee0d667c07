package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

func parse(t *testing.T, p Pair) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(p.CertPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestEnsure(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	now := time.Now()
	clock := func() time.Time { return now }
	ca, err := openCA(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	first, err := ca.Ensure(Admin())
	if err != nil {
		t.Fatal(err)
	}
	again, err := openCA(dir, clock)
	if err != nil {
		t.Fatal(err)
	}
	second, err := again.Ensure(Admin())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.CertPEM, second.CertPEM) {
		t.Error("a good certificate was made anew")
	}
	now = now.Add(CertLifetime - RenewBefore + time.Hour)
	third, err := again.Ensure(Admin())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(first.CertPEM, third.CertPEM) {
		t.Error("a certificate close to its end was not renewed")
	}
	cert := parse(t, third)
	if cert.Subject.CommonName != UserAdmin || !slices.Contains(cert.Subject.Organization, GroupMasters) {
		t.Errorf("subject %s", cert.Subject)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"ca.key", "ca.crt", "admin.key", "admin.crt"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info, err)
	}
}

func TestServerCertificateFollowsItsNames(t *testing.T) {
	ca, err := OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	first, err := ca.Ensure(APIServer())
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1", "localhost", "kubernetes.default.svc"} {
		if err := parse(t, first).VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	second, err := ca.Ensure(APIServer("10.9.8.7"))
	if err != nil {
		t.Fatal(err)
	}
	if err := parse(t, second).VerifyHostname("10.9.8.7"); err != nil {
		t.Error(err)
	}
}

func TestHalfAnAuthority(t *testing.T) {
	for _, lost := range []string{"ca.crt", "ca.key"} {
		dir := t.TempDir()
		ca, err := OpenCA(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ca.Ensure(Admin()); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(dir, lost)); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenCA(dir); err == nil {
			t.Errorf("without %s a new authority was made in place of one in use", lost)
		}
	}
}

func TestKubeconfig(t *testing.T) {
	dir := t.TempDir()
	ca, err := OpenCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(Admin())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "admin.kubeconfig")
	if err := ca.WriteKubeconfig(path, "https://127.0.0.1:6443", UserAdmin, pair); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	if config.Host != "https://127.0.0.1:6443" || !bytes.Equal(config.CertData, pair.CertPEM) || !bytes.Equal(config.CAData, ca.CertPEM()) {
		t.Errorf("read back %+v", config)
	}
}

// The key of service account tokens is the same wherever the authority is, and
// another one for another authority.
func TestTokenKey(t *testing.T) {
	dir := t.TempDir()
	key := func(dir string) *ecdsa.PrivateKey {
		ca, err := OpenCA(dir)
		if err != nil {
			t.Fatal(err)
		}
		k, err := ca.TokenKey()
		if err != nil {
			t.Fatal(err)
		}
		if k.Equal(ca.key) {
			t.Error("it is the key of the authority")
		}
		return k
	}
	if first := key(dir); !first.Equal(key(dir)) || first.Equal(key(t.TempDir())) {
		t.Error("the key does not follow from the authority")
	}
}
