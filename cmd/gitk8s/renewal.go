package main

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	watchtools "k8s.io/client-go/tools/watch"

	"gitk8s.dev/gitk8s/controlplane/controllers/certificates"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

// signingTime is how long a certificate is waited for.
const signingTime = time.Minute

// workerCertificates are those with which a worker calls the API and is called, in files of
// its directory. They are renewed as the kubelet's are ("Configure Certificate Rotation for
// the Kubelet" in Kubernetes' documentation), but keep their keys, so that there is one file
// to be replaced for each: a worker that is killed in between still has a certificate and
// the key for it.
type workerCertificates struct {
	dir         string
	calling     atomic.Pointer[tls.Certificate] // nil where it calls with something else
	serving     atomic.Pointer[tls.Certificate]
	connections *connections
}

// openWorkerCertificates reads a worker's certificates, and has the connections of rc made
// with the one that is newest.
func openWorkerCertificates(dir string, rc *rest.Config) (*workerCertificates, error) {
	c := &workerCertificates{dir: dir}
	serving, err := tls.LoadX509KeyPair(filepath.Join(dir, workerCert), filepath.Join(dir, workerKey))
	if err != nil {
		return nil, err
	}
	c.serving.Store(&serving)
	if len(rc.CertData) == 0 {
		return c, nil
	}
	calling, err := tls.X509KeyPair(rc.CertData, rc.KeyData)
	if err != nil {
		return nil, fmt.Errorf("the client certificate in %s: %w", filepath.Join(dir, workerKubeconfig), err)
	}
	c.calling.Store(&calling)
	config, err := rest.TLSConfigFor(rc)
	if err != nil {
		return nil, err
	}
	config.Certificates = nil
	config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.calling.Load(), nil }
	c.connections = newConnections(config)
	rc.Transport, rc.TLSClientConfig = c.connections, rest.TLSClientConfig{}
	return c, nil
}

// connections make requests over connections that can be made anew without a request
// being lost.
type connections struct {
	config *tls.Config
	newest atomic.Pointer[http.Transport]
}

func newConnections(config *tls.Config) *connections {
	c := &connections{config: config}
	c.newest.Store(c.transport())
	return c
}

func (c *connections) transport() *http.Transport {
	return utilnet.SetTransportDefaults(&http.Transport{TLSClientConfig: c.config.Clone(), MaxIdleConnsPerHost: 25})
}

// renew makes the connections of all further requests anew. What is under way is not cut
// off: watches, the longest of it, are ended by client-go after ten minutes at most.
func (c *connections) renew() { c.newest.Swap(c.transport()).CloseIdleConnections() }

// RoundTrip implements http.RoundTripper.
func (c *connections) RoundTrip(r *http.Request) (*http.Response, error) {
	return c.newest.Load().RoundTrip(r)
}

// CloseIdleConnections lets go of connections that may be dead; client-go asks for it.
func (c *connections) CloseIdleConnections() { c.newest.Load().CloseIdleConnections() }

// ends is when the first of them ends.
func (c *workerCertificates) ends() time.Time {
	ends := c.serving.Load().Leaf.NotAfter
	if calling := c.calling.Load(); calling != nil && calling.Leaf.NotAfter.Before(ends) {
		ends = calling.Leaf.NotAfter
	}
	return ends
}

// renew renews those that end before long.
func (c *workerCertificates) renew(ctx context.Context, client kubernetes.Interface) error {
	ctx, cancel := context.WithTimeout(ctx, signingTime)
	defer cancel()
	var errs []error
	if old := c.calling.Load(); old != nil && time.Until(old.Leaf.NotAfter) < pki.RenewBefore {
		next, err := renewed(ctx, client, old, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.UsageClientAuth)
		if err == nil {
			err = c.keepCalling(next)
		}
		if err == nil {
			c.calling.Store(next)
			c.connections.renew()
		}
		errs = append(errs, err)
	}
	if old := c.serving.Load(); time.Until(old.Leaf.NotAfter) < pki.RenewBefore {
		next, err := renewed(ctx, client, old, certificatesv1.KubeletServingSignerName, certificatesv1.UsageServerAuth)
		if err == nil {
			err = pki.WriteFile(filepath.Join(c.dir, workerCert), inPEM(next))
		}
		if err == nil {
			c.serving.Store(next)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// keepCalling puts the certificate into the worker's kubeconfig.
func (c *workerCertificates) keepCalling(cert *tls.Certificate) error {
	file := filepath.Join(c.dir, workerKubeconfig)
	config, err := clientcmd.LoadFromFile(file)
	if err != nil {
		return err
	}
	current := config.Contexts[config.CurrentContext]
	if current == nil || config.AuthInfos[current.AuthInfo] == nil || len(config.AuthInfos[current.AuthInfo].ClientCertificateData) == 0 {
		return fmt.Errorf("%s has no certificate in it that could be replaced", file)
	}
	config.AuthInfos[current.AuthInfo].ClientCertificateData = inPEM(cert)
	b, err := clientcmd.Write(*config)
	if err != nil {
		return err
	}
	return pki.WriteFile(file, b)
}

func inPEM(c *tls.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]})
}

// renewed asks the API for what a certificate has, for longer, and waits until it is signed.
func renewed(ctx context.Context, client kubernetes.Interface, old *tls.Certificate, signer string, use certificatesv1.KeyUsage) (*tls.Certificate, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: old.Leaf.Subject, DNSNames: old.Leaf.DNSNames, IPAddresses: old.Leaf.IPAddresses,
	}, old.PrivateKey)
	if err != nil {
		return nil, err
	}
	made, err := client.CertificatesV1().CertificateSigningRequests().Create(ctx, &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-", Annotations: map[string]string{certificates.AnnotationRenews: string(inPEM(old))}},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), SignerName: signer,
			Usages: []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, use},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("ask for a certificate: %w", err)
	}
	lw := cache.NewListWatchFromClient(client.CertificatesV1().RESTClient(), "certificatesigningrequests", metav1.NamespaceAll, fields.OneTermEqualSelector("metadata.name", made.Name))
	var signed []byte
	_, err = watchtools.UntilWithSync(ctx, lw, &certificatesv1.CertificateSigningRequest{}, nil, func(ev watch.Event) (bool, error) {
		r, ok := ev.Object.(*certificatesv1.CertificateSigningRequest)
		if !ok {
			return false, nil
		}
		for _, d := range r.Status.Conditions {
			if d.Type == certificatesv1.CertificateDenied || d.Type == certificatesv1.CertificateFailed {
				return false, fmt.Errorf("%s: %s", d.Reason, d.Message)
			}
		}
		signed = r.Status.Certificate
		return len(signed) > 0, nil
	})
	if err != nil {
		return nil, fmt.Errorf("certificatesigningrequest %s: %w", made.Name, err)
	}
	leaf, err := pki.ParseCertificate(signed)
	if err != nil {
		return nil, fmt.Errorf("certificatesigningrequest %s: %w", made.Name, err)
	}
	if key, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !key.Equal(old.Leaf.PublicKey) {
		return nil, fmt.Errorf("certificatesigningrequest %s: the certificate is for another key", made.Name)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: old.PrivateKey, Leaf: leaf}, nil
}

// keepCertificates renews the worker's certificates in time, and has its Node say when that
// does not succeed.
func (w *worker) keepCertificates(ctx context.Context, events record.EventRecorder) {
	// The kubelet takes the node's name for its UID, which `kubectl describe` relies on.
	node := &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: w.name, UID: types.UID(w.name)}
	e := expiry{
		ends:   w.certificates.ends,
		renew:  func(ctx context.Context) error { return w.certificates.renew(ctx, w.client) },
		whose:  "the certificates of worker " + w.name,
		remedy: "they could not be renewed, see the agent's log; `gitk8s server enroll` makes others, with which the agent is to be started anew",
	}
	e.watch(ctx, func(message string) { events.Event(node, corev1.EventTypeWarning, "CertificatesExpire", message) })
}
