package apiserver_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

func certificateRequest(t *testing.T, subject pkix.Name) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// TestCertificateSigningRequests: who may say what in a request, and at which endpoint.
func TestCertificateSigningRequests(t *testing.T) {
	cp := apiservertest.StartWith(t, nil)
	pair, err := cp.CA.Issue(pki.NodeClient("one"))
	if err != nil {
		t.Fatal(err)
	}
	admin := kubernetes.NewForConfigOrDie(cp.Admin).CertificatesV1().CertificateSigningRequests()
	node := kubernetes.NewForConfigOrDie(cp.CA.RESTConfig(cp.URL, pair)).CertificatesV1().CertificateSigningRequests()
	ctx := t.Context()
	good := certificateRequest(t, pkix.Name{CommonName: "jane", Organization: []string{"developers"}})
	request := func(name string, change ...func(*certificatesv1.CertificateSigningRequestSpec)) *certificatesv1.CertificateSigningRequest {
		r := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: good, SignerName: certificatesv1.KubeAPIServerClientSignerName, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
			Username: "kubernetes-admin", Groups: []string{"system:masters"},
		}}
		for _, f := range change {
			f(&r.Spec)
		}
		return r
	}
	type spec = certificatesv1.CertificateSigningRequestSpec
	bad := []byte(strings.Replace(string(good), "CERTIFICATE REQUEST", "CERTIFICATE", 2))
	broken := append([]byte(nil), good...)
	broken[len(broken)/2]++
	for what, c := range map[string]struct {
		change func(*spec)
		why    string
	}{
		"nothing":       {func(s *spec) { s.Request = []byte("x") }, "PEM block type must be CERTIFICATE REQUEST"},
		"another block": {func(s *spec) { s.Request = bad }, "PEM block type must be CERTIFICATE REQUEST"},
		"two":           {func(s *spec) { s.Request = append(append([]byte(nil), good...), good...) }, "one PEM block and nothing more"},
		"a broken one":  {func(s *spec) { s.Request = broken }, "spec.request: Invalid value"},
		"a large one":   {func(s *spec) { s.Request = append(append([]byte(nil), good...), make([]byte, 20<<10)...) }, "must be no longer than"},
		"a master": {func(s *spec) {
			s.Request = certificateRequest(t, pkix.Name{CommonName: "x", Organization: []string{"system:masters"}})
		}, "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed"},
		"no signer":             {func(s *spec) { s.SignerName = "" }, "spec.signerName: Required value"},
		"a signer without path": {func(s *spec) { s.SignerName = "example.com" }, "fully qualified domain and path"},
		"a signer without dot":  {func(s *spec) { s.SignerName = "example/x" }, "at least two segments"},
		"a short one":           {func(s *spec) { s.ExpirationSeconds = ptr.To[int32](599) }, "may not specify a duration less than 600 seconds"},
		"no usages":             {func(s *spec) { s.Usages = nil }, "usages is required"},
		"an unknown usage":      {func(s *spec) { s.Usages = []certificatesv1.KeyUsage{"flying"} }, `Unsupported value: "flying"`},
		"a usage twice":         {func(s *spec) { s.Usages = append(s.Usages, s.Usages...) }, "Duplicate value"},
	} {
		if _, err := admin.Create(ctx, request("x", c.change), metav1.CreateOptions{}); err == nil || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%s: %v, want %q", what, err, c.why)
		}
	}

	// Who asks is what the server knows, not what the object says.
	made, err := node.Create(ctx, request("jane"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if made.Spec.Username != "system:node:one" || strings.Join(made.Spec.Groups, " ") != "system:nodes system:authenticated" {
		t.Errorf("asked by %s of %q", made.Spec.Username, made.Spec.Groups)
	}
	approved := made.DeepCopy()
	approved.Spec.Username = "kubernetes-admin"
	approved.Status.Certificate = []byte("x")
	approved.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Because"}}
	if _, err := node.UpdateApproval(ctx, "jane", approved, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("a node approved it: %v", err)
	}
	// Neither the spec's endpoint nor that of the status approves.
	if got, err := admin.Update(ctx, approved, metav1.UpdateOptions{}); err != nil || len(got.Status.Conditions) > 0 || got.Spec.Username != "system:node:one" {
		t.Errorf("%v %+v", err, got)
	}
	byStatus := approved.DeepCopy()
	byStatus.Status.Certificate, byStatus.ResourceVersion = nil, ""
	if got, err := admin.UpdateStatus(ctx, byStatus, metav1.UpdateOptions{}); err != nil || len(got.Status.Conditions) > 0 {
		t.Errorf("%v %+v", err, got)
	}
	approved.ResourceVersion = ""
	got, err := admin.UpdateApproval(ctx, "jane", approved, metav1.UpdateOptions{})
	if err != nil || len(got.Status.Conditions) != 1 || got.Status.Conditions[0].LastUpdateTime.IsZero() || got.Status.Conditions[0].LastTransitionTime.IsZero() ||
		len(got.Status.Certificate) > 0 || got.Spec.Username != "system:node:one" {
		t.Fatalf("%v %+v", err, got)
	}
	both := got.DeepCopy()
	both.Status.Conditions = append(both.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateDenied, Status: corev1.ConditionTrue})
	if _, err := admin.UpdateApproval(ctx, "jane", both, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "mutually exclusive") {
		t.Errorf("approved and denied: %v", err)
	}
	both.Status.Conditions = nil
	if _, err := admin.UpdateApproval(ctx, "jane", both, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), `may not remove a condition of type "Approved"`) {
		t.Errorf("taken back: %v", err)
	}
	signed := got.DeepCopy()
	signed.Status.Certificate = []byte("x")
	if _, err := admin.UpdateStatus(ctx, signed, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "at least one CERTIFICATE PEM block") {
		t.Errorf("a certificate that is none: %v", err)
	}
	signed.Status.Certificate = pair.CertPEM
	signed.Status.Conditions = nil // those of the approval stay
	if got, err = admin.UpdateStatus(ctx, signed, metav1.UpdateOptions{}); err != nil || len(got.Status.Conditions) != 1 || len(got.Status.Certificate) == 0 {
		t.Fatalf("%v %+v", err, got)
	}
	got.Status.Certificate = cp.CA.CertPEM()
	if _, err := admin.UpdateStatus(ctx, got, metav1.UpdateOptions{}); err == nil || !strings.Contains(err.Error(), "immutable") {
		t.Errorf("another certificate: %v", err)
	}
}
