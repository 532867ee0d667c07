// Package certificates signs what CertificateSigningRequests ask for, approves those with
// which workers renew their certificates, and removes old ones (page "Certificates and
// Certificate Signing Requests"). In: CertificateSigningRequests by watch. Out: their
// conditions and certificates, and their deletion.
//
// It signs for kubernetes.io/kube-apiserver-client, which somebody has to approve, and for
// kubernetes.io/kube-apiserver-client-kubelet and kubernetes.io/kubelet-serving. Requests
// for other signers are left to them.
package certificates

import (
	"context"
	"crypto/x509"
	"fmt"
	"math"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	certificateslisters "k8s.io/client-go/listers/certificates/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Authority is the cluster's certificate authority.
type Authority interface {
	// Pool is the authority as a pool of roots.
	Pool() *x509.CertPool
	// Sign makes a certificate, in PEM, a server's or a client's, that lasts so long, or less
	// if that is more than the authority gives.
	Sign(r *x509.CertificateRequest, server bool, lifetime time.Duration) ([]byte, error)
}

// Controller is the certificates controller.
type Controller struct {
	client   kubernetes.Interface
	ca       Authority
	requests certificateslisters.CertificateSigningRequestLister
	synced   cache.InformerSynced
	loop     *controller.Loop
}

// New returns a controller that signs with ca and watches through f; f is started by the
// caller.
func New(client kubernetes.Interface, ca Authority, f informers.SharedInformerFactory) *Controller {
	requests := f.Certificates().V1().CertificateSigningRequests()
	c := &Controller{client: client, ca: ca, requests: requests.Lister(), synced: requests.Informer().HasSynced}
	c.loop = controller.NewLoop("certificates", 1, c.sync)
	requests.Informer().AddEventHandler(controller.Handler(func(_, r *certificatesv1.CertificateSigningRequest) {
		if r != nil {
			c.loop.Add(r.Name)
		}
	}))
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error { return c.loop.Run(ctx, c.synced) }

func (c *Controller) sync(ctx context.Context, key string) error {
	r, err := c.requests.Get(key)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	s := stateOf(r)
	left := time.Until(s.removal())
	if left <= 0 {
		return c.remove(ctx, r)
	}
	c.loop.AddAfter(key, left)
	switch {
	case s.denied || s.failed || s.issued || !signs(r.Spec.SignerName):
		return nil
	case s.approved:
		return c.sign(ctx, r.DeepCopy())
	}
	return c.approve(ctx, r.DeepCopy())
}

func (c *Controller) remove(ctx context.Context, r *certificatesv1.CertificateSigningRequest) error {
	err := c.client.CertificatesV1().CertificateSigningRequests().Delete(ctx, r.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &r.UID, ResourceVersion: &r.ResourceVersion},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete certificatesigningrequest %s, which is old: %w", r.Name, err)
	}
	return nil
}

// approve approves a request with which a worker renews a certificate. All others are
// somebody's to decide.
func (c *Controller) approve(ctx context.Context, r *certificatesv1.CertificateSigningRequest) error {
	request, err := requestIn(r)
	if err != nil || permitted(r.Spec.SignerName, request, r.Spec.Usages) != nil || !renewal(r, request, c.ca.Pool(), time.Now()) {
		return nil
	}
	r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "AutoApproved", Message: "the worker renews its own certificate",
	})
	if _, err := c.client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, r.Name, r, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("approve certificatesigningrequest %s: %w", r.Name, err)
	}
	return nil
}

// sign signs a request that has been approved, or says why it cannot be.
func (c *Controller) sign(ctx context.Context, r *certificatesv1.CertificateSigningRequest) error {
	request, err := requestIn(r)
	if err == nil {
		err = permitted(r.Spec.SignerName, request, r.Spec.Usages)
	}
	if err != nil {
		r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
			Type: certificatesv1.CertificateFailed, Status: corev1.ConditionTrue, Reason: "SignerValidationFailure", Message: err.Error(),
		})
	} else {
		lifetime := time.Duration(math.MaxInt64)
		if s := r.Spec.ExpirationSeconds; s != nil {
			lifetime = time.Duration(*s) * time.Second
		}
		if r.Status.Certificate, err = c.ca.Sign(request, r.Spec.SignerName == certificatesv1.KubeletServingSignerName, lifetime); err != nil {
			return err
		}
	}
	if _, err := c.client.CertificatesV1().CertificateSigningRequests().UpdateStatus(ctx, r, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("write the certificate of certificatesigningrequest %s: %w", r.Name, err)
	}
	return nil
}
