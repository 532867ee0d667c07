package certificates

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

const (
	client  = certificatesv1.KubeAPIServerClientSignerName
	kubelet = certificatesv1.KubeAPIServerClientKubeletSignerName
	serving = certificatesv1.KubeletServingSignerName
)

// asks is a request of a worker for its own certificate, changed by what is given.
func asks(change ...func(*x509.CertificateRequest)) *x509.CertificateRequest {
	r := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:one", Organization: []string{"system:nodes"}}}
	for _, f := range change {
		f(r)
	}
	return r
}

func named(cn string, groups ...string) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) { r.Subject = pkix.Name{CommonName: cn, Organization: groups} }
}

func hosts(names ...string) func(*x509.CertificateRequest) {
	return func(r *x509.CertificateRequest) {
		for _, n := range names {
			if ip := net.ParseIP(n); ip != nil {
				r.IPAddresses = append(r.IPAddresses, ip)
			} else {
				r.DNSNames = append(r.DNSNames, n)
			}
		}
	}
}

func TestPermitted(t *testing.T) {
	calls, serves := []certificatesv1.KeyUsage{"digital signature", "client auth"}, []certificatesv1.KeyUsage{"digital signature", "server auth"}
	for _, c := range []struct {
		name, signer string
		r            *x509.CertificateRequest
		usages       []certificatesv1.KeyUsage
		why          string
	}{
		{"a user", client, asks(named("jane", "developers")), calls, ""},
		{"a user with a key for RSA", client, asks(named("jane")), append(slices.Clone(calls), "key encipherment"), ""},
		{"a master", client, asks(named("jane", "developers", "system:masters")), calls, "system:masters is not permitted"},
		{"a user who serves", client, asks(named("jane")), append(slices.Clone(calls), "server auth"), `usage "server auth" is not permitted`},
		{"a user who does nothing", client, asks(named("jane")), calls[:1], `usage "client auth" is missing`},
		{"a user with a name", client, asks(named("jane"), hosts("api.example.com")), calls, "no host names"},
		{"an authority", client, asks(named("jane")), append(slices.Clone(calls), "cert sign"), `usage "cert sign" is not permitted`},
		{"a worker", kubelet, asks(), calls, ""},
		{"a worker and master", kubelet, asks(named("system:node:one", "system:nodes", "system:masters")), calls, "the subject is not"},
		{"no worker", kubelet, asks(named("kubernetes-admin", "system:nodes")), calls, "the subject is not"},
		{"a worker with an address", kubelet, asks(hosts("192.0.2.1")), calls, "no host names"},
		{"a worker with a mail box", kubelet, asks(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@example.com"} }), calls, "mail boxes"},
		{"a worker with a URI", serving, asks(hosts("one"), func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{Scheme: "spiffe"}} }), serves, "URIs"},
		{"a server", serving, asks(hosts("one", "192.0.2.1")), serves, ""},
		{"a server without names", serving, asks(), serves, "at least one host name"},
		{"a server that calls", serving, asks(hosts("one")), calls, `usage "client auth" is not permitted`},
		{"another's server", serving, asks(named("kube-apiserver"), hosts("one")), serves, "the subject is not"},
	} {
		err := permitted(c.signer, c.r, c.usages)
		if (err == nil) != (c.why == "") || err != nil && !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", c.name, err, c.why)
		}
	}
}

func TestRenewal(t *testing.T) {
	ca, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := pki.OpenCA(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	issued := func(ca *pki.CA, r *x509.CertificateRequest, server bool) string {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		r.PublicKey = key.Public()
		b, err := ca.Sign(r, server, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	own := issued(ca, asks(hosts("one", "192.0.2.1", "192.0.2.2")), true)
	now := time.Now()
	for _, c := range []struct {
		name, signer string
		who          string
		groups       []string
		r            *x509.CertificateRequest
		renews       string
		now          time.Time
		want         bool
	}{
		{"its client's", kubelet, "system:node:one", []string{"system:nodes"}, asks(), "", now, true},
		{"another's client", kubelet, "system:node:two", []string{"system:nodes"}, asks(), "", now, false},
		{"one who is called like a node", kubelet, "system:node:one", nil, asks(), "", now, false},
		{"an administrator's for a node", kubelet, "kubernetes-admin", []string{"system:masters"}, asks(), "", now, false},
		{"a node as a user", client, "system:node:one", []string{"system:nodes"}, asks(), "", now, false},
		{"its server's", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("one", "192.0.2.1")), own, now, true},
		{"another name", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("one", "kubernetes")), own, now, false},
		{"another address", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("one", "192.0.2.3")), own, now, false},
		{"no certificate", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("one")), "", now, false},
		{"one that has ended", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("one")), own, now.Add(2 * time.Hour), false},
		{"one of another authority", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("one")), issued(foreign, asks(hosts("one")), true), now, false},
		{"one of another worker", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("two")), issued(ca, asks(named("system:node:two", "system:nodes"), hosts("two")), true), now, false},
		{"a client's", serving, "system:node:one", []string{"system:nodes"}, asks(hosts("one")), issued(ca, asks(), false), now, false},
	} {
		csr := &certificatesv1.CertificateSigningRequest{
			ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{AnnotationRenews: c.renews}},
			Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: c.signer, Username: c.who, Groups: c.groups},
		}
		if got := renewal(csr, c.r, ca.Pool(), c.now); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}

func TestRemoval(t *testing.T) {
	made := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		condition certificatesv1.RequestConditionType
		want      time.Duration
	}{
		{"", 24 * time.Hour},
		{"Something", 24 * time.Hour},
		{certificatesv1.CertificateApproved, 3 * time.Hour},
		{certificatesv1.CertificateDenied, 3 * time.Hour},
		{certificatesv1.CertificateFailed, 3 * time.Hour},
	} {
		csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(made)}}
		if c.condition != "" {
			csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: c.condition, LastUpdateTime: metav1.NewTime(made.Add(2 * time.Hour))}}
		}
		if got := stateOf(csr).removal().Sub(made); got != c.want {
			t.Errorf("%q: after %s", c.condition, got)
		}
	}
}
