package certificates

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apiserver/pkg/authentication/user"
)

// AnnotationRenews holds the serving certificate, in PEM, that a worker asks to renew.
const AnnotationRenews = "gitk8s.dev/renews-certificate"

// How long requests are kept, as Kubernetes' documentation has it.
const (
	keepDone    = time.Hour
	keepPending = 24 * time.Hour
)

// nodePrefix followed by a node's name is its worker's common name.
const nodePrefix = "system:node:"

// signs says whether a signer is one of this controller's.
func signs(signer string) bool {
	switch signer {
	case certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName:
		return true
	}
	return false
}

// permitted says what keeps a signer from signing a request, as Kubernetes' documentation
// of its signers has it. Nothing else is signed, whoever has approved it.
func permitted(signer string, r *x509.CertificateRequest, usages []certificatesv1.KeyUsage) error {
	use := certificatesv1.UsageClientAuth
	if signer == certificatesv1.KubeletServingSignerName {
		use = certificatesv1.UsageServerAuth
	}
	for _, u := range usages {
		if u != use && u != certificatesv1.UsageDigitalSignature && u != certificatesv1.UsageKeyEncipherment {
			return fmt.Errorf("the usage %q is not permitted", u)
		}
	}
	if !slices.Contains(usages, use) {
		return fmt.Errorf("the usage %q is missing", use)
	}
	if len(r.EmailAddresses) > 0 || len(r.URIs) > 0 {
		return errors.New("names of mail boxes and URIs are not permitted")
	}
	if signer != certificatesv1.KubeletServingSignerName && len(r.DNSNames)+len(r.IPAddresses) > 0 {
		return errors.New("a client's certificate has no host names or addresses")
	}
	if signer == certificatesv1.KubeAPIServerClientSignerName {
		if slices.Contains(r.Subject.Organization, user.SystemPrivilegedGroup) {
			return fmt.Errorf("organization %s is not permitted", user.SystemPrivilegedGroup)
		}
		return nil
	}
	if !slices.Equal(r.Subject.Organization, []string{user.NodesGroup}) || !strings.HasPrefix(r.Subject.CommonName, nodePrefix) {
		return fmt.Errorf("the subject is not organization %s and common name %sNAME", user.NodesGroup, nodePrefix)
	}
	if signer == certificatesv1.KubeletServingSignerName && len(r.DNSNames)+len(r.IPAddresses) == 0 {
		return errors.New("a server's certificate has at least one host name or address")
	}
	return nil
}

// renewal says that a worker asks for what it has already, for longer: a certificate in
// its own name and, for its server, for no other names and addresses than those that the
// certificate has that it wants to renew. These were given to it by whoever enrolled it; what
// its Node says of its addresses is its own word, and is not believed.
func renewal(c *certificatesv1.CertificateSigningRequest, r *x509.CertificateRequest, roots *x509.CertPool, now time.Time) bool {
	if !strings.HasPrefix(c.Spec.Username, nodePrefix) || !slices.Contains(c.Spec.Groups, user.NodesGroup) || r.Subject.CommonName != c.Spec.Username {
		return false
	}
	switch c.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		return true
	case certificatesv1.KubeletServingSignerName:
	default:
		return false
	}
	has, err := certificateIn(c.Annotations[AnnotationRenews])
	if err != nil {
		return false
	}
	_, err = has.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err == nil && has.Subject.CommonName == r.Subject.CommonName &&
		within(r.DNSNames, has.DNSNames, func(a, b string) bool { return a == b }) && within(r.IPAddresses, has.IPAddresses, net.IP.Equal)
}

// requestIn reads a request, which the API server has looked at when it was made.
func requestIn(c *certificatesv1.CertificateSigningRequest) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(c.Spec.Request)
	if block == nil {
		return nil, errors.New("the request is not in PEM")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return r, r.CheckSignature()
}

func certificateIn(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("there is no certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

// within says whether all of a list are in another one.
func within[T any](list, in []T, equal func(a, b T) bool) bool {
	for _, x := range list {
		if !slices.ContainsFunc(in, func(y T) bool { return equal(x, y) }) {
			return false
		}
	}
	return true
}

// state is what has become of a request.
type state struct {
	approved, denied, failed, issued bool
	since                            time.Time // the last decision
}

func stateOf(c *certificatesv1.CertificateSigningRequest) state {
	s := state{issued: len(c.Status.Certificate) > 0, since: c.CreationTimestamp.Time}
	for _, d := range c.Status.Conditions {
		switch d.Type {
		case certificatesv1.CertificateApproved:
			s.approved = true
		case certificatesv1.CertificateDenied:
			s.denied = true
		case certificatesv1.CertificateFailed:
			s.failed = true
		default:
			continue
		}
		if d.LastUpdateTime.After(s.since) {
			s.since = d.LastUpdateTime.Time
		}
	}
	return s
}

// removal is when a request is removed.
func (s state) removal() time.Time {
	if s.approved || s.denied || s.failed {
		return s.since.Add(keepDone)
	}
	return s.since.Add(keepPending)
}
