// Package pki is the certificate authority of a cluster: one CA in a folder, the
// certificates of the components made on demand beside it, and kubeconfig files.
//
// Keys are ECDSA P-256. Files are 0600 in a folder of mode 0700 and are replaced
// atomically. A CA lasts ten years and a component's certificate one; a
// certificate is renewed when it is asked for with less than 90 days to go, when
// its identity or names have changed, or when it is of another CA.
package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	caLifetime = 10 * 365 * 24 * time.Hour
	// CertLifetime is how long a certificate lasts.
	CertLifetime = 365 * 24 * time.Hour
	// RenewBefore is how long before its end a certificate is renewed.
	RenewBefore = 90 * 24 * time.Hour
	// backdate tolerates clocks of other machines that run behind.
	backdate = 5 * time.Minute
)

// blockCertificate is the type of a certificate in PEM.
const blockCertificate = "CERTIFICATE"

// Identities of the components, see docs/contracts.md.
const (
	// UserAdmin is the administrator's common name, of organisation GroupMasters.
	UserAdmin = "kubernetes-admin"
	// UserControllerManager is the common name of the controllers.
	UserControllerManager = "system:kube-controller-manager"
	// UserScheduler is the common name of the scheduler.
	UserScheduler = "system:kube-scheduler"
	// UserReconciler is the common name of the Git loop.
	UserReconciler = "gitk8s:reconciler"
	// UserAPIServer is the common name with which the API server calls workers.
	UserAPIServer = "system:apiserver"
	// UserNodePrefix followed by a node's name is a worker's common name.
	UserNodePrefix = "system:node:"
	// GroupMasters may do everything.
	GroupMasters = "system:masters"
	// GroupNodes is the organisation of every worker.
	GroupNodes = "system:nodes"
)

// Pair is a certificate and its key, in PEM.
type Pair struct {
	// CertPEM is the certificate.
	CertPEM []byte
	// KeyPEM is its private key in PKCS #8.
	KeyPEM []byte
}

// TLS returns the pair in the form that crypto/tls takes.
func (p Pair) TLS() (tls.Certificate, error) { return tls.X509KeyPair(p.CertPEM, p.KeyPEM) }

// Request says what a certificate is for.
type Request struct {
	// Name is the base of the file names.
	Name string
	// CommonName is the user, Organization its groups.
	CommonName   string
	Organization []string
	// Hosts are the DNS names and IP addresses of a server certificate.
	Hosts []string
	// Server and Client are the uses.
	Server, Client bool
}

// Admin is the request for the administrator's certificate.
func Admin() Request {
	return Request{Name: "admin", CommonName: UserAdmin, Organization: []string{GroupMasters}, Client: true}
}

// Component is the request for a component's client certificate.
func Component(name, user string) Request {
	return Request{Name: name, CommonName: user, Client: true}
}

// NodeClient is the request for a worker's client certificate.
func NodeClient(node string) Request {
	return Request{
		Name: "node-" + node, CommonName: UserNodePrefix + node,
		Organization: []string{GroupNodes}, Client: true,
	}
}

// NodeServer is the request for the certificate of a worker's HTTPS server.
func NodeServer(node string, addresses ...string) Request {
	return Request{
		Name: "node-" + node + "-server", CommonName: UserNodePrefix + node,
		Organization: []string{GroupNodes}, Hosts: append([]string{node}, addresses...), Server: true,
	}
}

// APIServer is the request for the API server's serving certificate. Extra names
// and addresses are added to those that every cluster has.
func APIServer(extra ...string) Request {
	hosts := []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc.cluster.local", "127.0.0.1", "::1",
	}
	for _, h := range extra {
		if h != "" && !slices.Contains(hosts, h) {
			hosts = append(hosts, h)
		}
	}
	return Request{Name: "apiserver", CommonName: "kube-apiserver", Hosts: hosts, Server: true}
}

// CA is a certificate authority kept in a folder.
type CA struct {
	dir     string
	cert    *x509.Certificate
	certPEM []byte
	key     crypto.Signer
	now     func() time.Time
}

// OpenCA reads the authority in dir, and makes it when there is none. A folder
// with only half of it is an error: making a new authority would cut off
// everything that trusts the old one.
func OpenCA(dir string) (*CA, error) { return openCA(dir, time.Now) }

func openCA(dir string, now func() time.Time) (*CA, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pki: make %s: %w", dir, err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("pki: close %s to others: %w", dir, err)
	}
	ca := &CA{dir: dir, now: now}
	pair, err := readPair(dir, "ca")
	if errors.Is(err, fs.ErrNotExist) {
		if err := unused(dir); err != nil {
			return nil, err
		}
		if pair, err = ca.create(); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	parsed, err := pair.TLS()
	if err != nil {
		return nil, fmt.Errorf("pki: the authority in %s is damaged, restore ca.crt and ca.key: %w", dir, err)
	}
	signer, ok := parsed.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("pki: the key in %s cannot sign", dir)
	}
	if ca.cert, err = x509.ParseCertificate(parsed.Certificate[0]); err != nil {
		return nil, fmt.Errorf("pki: parse the authority in %s: %w", dir, err)
	}
	if !ca.cert.IsCA {
		return nil, fmt.Errorf("pki: the certificate in %s is not an authority", dir)
	}
	ca.certPEM, ca.key = pair.CertPEM, signer
	return ca, nil
}

// unused makes sure that nothing trusts an authority whose key is not there: the
// folder has no certificates, but for one that a crash left at the very start.
func unused(dir string) error {
	certs, err := filepath.Glob(filepath.Join(dir, "*.crt"))
	if err != nil {
		return fmt.Errorf("pki: look into %s: %w", dir, err)
	}
	if len(certs) > 1 {
		return fmt.Errorf("pki: %s has certificates and no ca.key; restore it, or remove the folder to start anew", dir)
	}
	return nil
}

// CertPEM is the authority's certificate.
func (ca *CA) CertPEM() []byte { return bytes.Clone(ca.certPEM) }

// TokenKey is the key that signs service account tokens. It follows from the
// authority's own key, so that all servers of a cluster have the same without a
// file more to hand from one to the other; it says nothing about that key.
func (ca *CA) TokenKey() (*ecdsa.PrivateKey, error) {
	own, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, fmt.Errorf("pki: encode the authority's key: %w", err)
	}
	// Nearly every string of 32 bytes is a key of this curve.
	for try := byte(0); ; try++ {
		raw, err := hkdf.Key(sha256.New, own, []byte{try}, "gitk8s service account tokens", 32)
		if err != nil {
			return nil, fmt.Errorf("pki: derive the key of service account tokens: %w", err)
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), raw); err == nil {
			return key, nil
		}
	}
}

// Pool is the authority as a pool of roots.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// Ensure returns the certificate for a request out of the authority's folder,
// and makes or renews it there when needed.
func (ca *CA) Ensure(r Request) (Pair, error) {
	pair, err := readPair(ca.dir, r.Name)
	if err == nil && ca.usable(pair, r) {
		return pair, nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Pair{}, err
	}
	if pair, err = ca.Issue(r); err != nil {
		return Pair{}, err
	}
	if err := writePair(ca.dir, r.Name, pair); err != nil {
		return Pair{}, err
	}
	return pair, nil
}

// Issue makes a certificate without keeping it.
func (ca *CA) Issue(r Request) (Pair, error) {
	template := ca.template(CertLifetime)
	template.Subject = pkix.Name{CommonName: r.CommonName, Organization: r.Organization}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	if r.Server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	if r.Client {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageClientAuth)
	}
	template.DNSNames, template.IPAddresses = splitHosts(r.Hosts)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("pki: make a key for %s: %w", r.Name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return Pair{}, fmt.Errorf("pki: sign the certificate for %s: %w", r.Name, err)
	}
	return encodePair(der, key)
}

// Sign makes a certificate, in PEM, for whoever has the key of a request: a server's, with
// its names and addresses, or a client's, which has none, for so long, and for CertLifetime
// at most. What else the request asks for is left out. Whether its subject may have one is for
// the caller to know.
func (ca *CA) Sign(r *x509.CertificateRequest, server bool, lifetime time.Duration) ([]byte, error) {
	template := ca.template(min(lifetime, CertLifetime))
	template.Subject = pkix.Name{CommonName: r.Subject.CommonName, Organization: r.Subject.Organization}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if server {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		template.DNSNames, template.IPAddresses = r.DNSNames, r.IPAddresses
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, r.PublicKey, ca.key)
	if err != nil {
		return nil, fmt.Errorf("pki: sign the certificate for %s: %w", r.Subject.CommonName, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: der}), nil
}

// ParseCertificate reads the first certificate of a file in PEM.
func ParseCertificate(b []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(b)
	if block == nil || block.Type != blockCertificate {
		return nil, errors.New("pki: there is no certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func (ca *CA) create() (Pair, error) {
	template := ca.template(caLifetime)
	template.Subject = pkix.Name{CommonName: "gitk8s-ca"}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, fmt.Errorf("pki: make the authority's key: %w", err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Pair{}, fmt.Errorf("pki: sign the authority: %w", err)
	}
	pair, err := encodePair(der, key)
	if err != nil {
		return Pair{}, err
	}
	return pair, writePair(ca.dir, "ca", pair)
}

func (ca *CA) template(lifetime time.Duration) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail on a working system
	}
	now := ca.now()
	notAfter := now.Add(lifetime)
	if ca.cert != nil && notAfter.After(ca.cert.NotAfter) {
		notAfter = ca.cert.NotAfter
	}
	return &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-backdate), NotAfter: notAfter}
}

// usable decides whether a certificate that is there answers the request.
func (ca *CA) usable(pair Pair, r Request) bool {
	parsed, err := pair.TLS()
	if err != nil {
		return false
	}
	cert, err := x509.ParseCertificate(parsed.Certificate[0])
	if err != nil || cert.CheckSignatureFrom(ca.cert) != nil {
		return false
	}
	if cert.NotAfter.Sub(ca.now()) < RenewBefore && cert.NotAfter.Before(ca.cert.NotAfter) {
		return false
	}
	dns, ips := splitHosts(r.Hosts)
	return cert.Subject.CommonName == r.CommonName &&
		slices.Equal(cert.Subject.Organization, r.Organization) &&
		slices.Equal(cert.DNSNames, dns) &&
		slices.EqualFunc(cert.IPAddresses, ips, net.IP.Equal) &&
		slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) == r.Server &&
		slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) == r.Client
}

func splitHosts(hosts []string) (dns []string, ips []net.IP) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
		} else {
			dns = append(dns, h)
		}
	}
	return dns, ips
}

func encodePair(der []byte, key *ecdsa.PrivateKey) (Pair, error) {
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("pki: encode a key: %w", err)
	}
	return Pair{
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: blockCertificate, Bytes: der}),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}

func readPair(dir, name string) (Pair, error) {
	key, err := os.ReadFile(filepath.Join(dir, name+".key"))
	if err != nil {
		return Pair{}, fmt.Errorf("pki: read the key of %s: %w", name, err)
	}
	cert, err := os.ReadFile(filepath.Join(dir, name+".crt"))
	if errors.Is(err, fs.ErrNotExist) && name == "ca" {
		// Not wrapped: the caller takes "does not exist" for an empty folder.
		return Pair{}, fmt.Errorf("pki: %s has ca.key and no ca.crt; restore it, or remove ca.key to start anew", dir)
	}
	if err != nil {
		return Pair{}, fmt.Errorf("pki: read the certificate of %s: %w", name, err)
	}
	return Pair{CertPEM: cert, KeyPEM: key}, nil
}

// writePair writes the certificate first: a crash in between leaves a certificate
// without key, which reads as "not there" and is made again.
func writePair(dir, name string, p Pair) error {
	if err := WriteFile(filepath.Join(dir, name+".crt"), p.CertPEM); err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, name+".key"), p.KeyPEM)
}

// WriteFile replaces a file atomically with mode 0600 and syncs it.
func WriteFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // nothing is there any more after the rename
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o600)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
