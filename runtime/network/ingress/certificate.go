package ingress

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"time"
)

// certificate finds that of the name that a client asks for at a port.
func (p *Proxy) certificate(port int32, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := p.table.Load().certificate(port, hello); c != nil {
		return awaited(c, hello.Conn.(*loopConn).task), nil
	}
	return p.own()
}

// awaited is a certificate whose signatures no loop waits for, if they take long.
func awaited(c *tls.Certificate, t *task) *tls.Certificate {
	key, ok := c.PrivateKey.(crypto.Signer)
	if !ok {
		return c
	}
	if _, slow := key.Public().(*rsa.PublicKey); !slow {
		return c
	}
	out := *c
	out.PrivateKey = awaitedKey{key, t}
	return &out
}

// awaitedKey has the loop of a task go on while something is signed for it. With RSA that
// takes 0.7 ms, or 5 ms if the key has 4096 bits, for which the others would wait; with
// ECDSA it takes 0.02 ms.
type awaitedKey struct {
	crypto.Signer
	task *task
}

// Sign implements crypto.Signer.
func (k awaitedKey) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	k.task.await(func() { signature, err = k.Signer.Sign(random, digest, opts) })
	return signature, err
}

// ownCertificate makes the certificate for names that have none: nobody trusts it, but
// a client that does not look gets its answer.
func ownCertificate() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "gitk8s ingress default"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0), DNSNames: []string{"ingress.gitk8s.local"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
