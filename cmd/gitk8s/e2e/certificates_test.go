package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	authenticationv1 "k8s.io/api/authentication/v1"
)

// TestCertificates: a user asks for a certificate, as the page "Certificates and Certificate
// Signing Requests" of Kubernetes' documentation has it, and somebody approves or denies it.
func TestCertificates(t *testing.T) {
	t.Parallel()
	c := suite.shared
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "jane", Organization: []string{"developers"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	request := base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
	for tool, k := range kubectls(c) {
		t.Run(tool, func(t *testing.T) {
			mine, other, server := "jane-"+tool, "john-"+tool, "server-"+tool
			t.Cleanup(func() { k.run(t, "delete", "csr", mine, other, server) })
			for name, usage := range map[string]string{mine: "client auth", other: "client auth", server: "server auth"} {
				c.apply(t, "", `apiVersion: certificates.k8s.io/v1
kind: CertificateSigningRequest
metadata: {name: `+name+`}
spec: {request: `+request+`, signerName: kubernetes.io/kube-apiserver-client, expirationSeconds: 86400, usages: [`+usage+`]}
`)
			}
			contains(t, k.run(t, "get", "csr", mine), "NAME", "SIGNERNAME", "REQUESTOR", "REQUESTEDDURATION", "kubernetes.io/kube-apiserver-client", "kubernetes-admin", "24h", "Pending")
			contains(t, k.run(t, "certificate", "approve", mine, server), "approved")
			contains(t, k.run(t, "certificate", "deny", other), "denied")
			var cert []byte
			eventually(t, "it is signed", func() error {
				r, err := c.k.CertificatesV1().CertificateSigningRequests().Get(t.Context(), mine, metav1.GetOptions{})
				if err == nil && len(r.Status.Certificate) == 0 {
					err = fmt.Errorf("not yet: %+v", r.Status)
				}
				if err == nil {
					cert = r.Status.Certificate
				}
				return err
			})
			contains(t, k.run(t, "get", "csr", mine), "Approved,Issued")
			contains(t, k.run(t, "describe", "csr", mine), "Common Name:", "jane", "Organization:", "developers", "Approved,Issued")
			if _, state, _ := strings.Cut(k.run(t, "get", "csr", other), "24h"); strings.TrimSpace(state) != "Denied" {
				t.Errorf("what was denied is %s", state)
			}
			eventually(t, "what the signer does not permit has failed", func() error {
				if text := k.run(t, "get", "csr", server); !strings.Contains(text, "Approved,Failed") {
					return errors.New(text)
				}
				return nil
			})
			contains(t, k.run(t, "get", "csr", server, "-o", "yaml"), "SignerValidationFailure", `the usage "server auth" is not permitted`)

			jane := kubernetes.NewForConfigOrDie(&rest.Config{Host: c.rest.Host, TLSClientConfig: rest.TLSClientConfig{
				CAData: c.rest.CAData, CertData: cert, KeyData: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}),
			}})
			who, err := jane.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
			if err != nil || who.Status.UserInfo.Username != "jane" || who.Status.UserInfo.Groups[0] != "developers" {
				t.Errorf("it is for %+v, %v", who, err)
			}
		})
	}
}

// renewedCertificates waits until the certificates of a worker, which ended at a time, would be
// of no use any more.
func renewedCertificates(t *testing.T, m *machine, c *cluster, ended time.Time) {
	calling, serving := m.certificates(t, "one")
	for what, cert := range map[string]*x509.Certificate{"client": calling, "server": serving} {
		if left := time.Until(cert.NotAfter); left < 364*24*time.Hour {
			t.Errorf("the %s's certificate ends in %s", what, left)
		}
	}
	<-time.After(time.Until(ended))
	eventually(t, "the worker calls the API after its certificate's end", func() error {
		lease, err := c.k.CoordinationV1().Leases("kube-node-lease").Get(t.Context(), "one", metav1.GetOptions{})
		if err == nil && lease.Spec.RenewTime.Before(&metav1.MicroTime{Time: ended}) {
			err = fmt.Errorf("its lease is of %s", lease.Spec.RenewTime)
		}
		return err
	})
	contains(t, c.kubectl(t, "-n", "kube-system", "exec", "web-one", "--", "/server", "env"), "GREETING=")
	signers := map[string]bool{}
	list, err := c.k.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list.Items {
		if r.Spec.Username == "system:node:one" && len(r.Status.Certificate) > 0 {
			signers[r.Spec.SignerName] = true
		}
	}
	if !signers[certificatesv1.KubeAPIServerClientKubeletSignerName] || !signers[certificatesv1.KubeletServingSignerName] {
		t.Errorf("signed by %v", signers)
	}
}
