package validation

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/authentication/user"
)

const (
	// maxCertificateRequest bounds what a request may cost to read, in bytes.
	maxCertificateRequest = 16 << 10
	// minExpirationSeconds is Kubernetes' bound for spec.expirationSeconds.
	minExpirationSeconds = 600
)

var keyUsages = []certificatesv1.KeyUsage{
	certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature, certificatesv1.UsageContentCommitment,
	certificatesv1.UsageKeyEncipherment, certificatesv1.UsageKeyAgreement, certificatesv1.UsageDataEncipherment,
	certificatesv1.UsageCertSign, certificatesv1.UsageCRLSign, certificatesv1.UsageEncipherOnly, certificatesv1.UsageDecipherOnly,
	certificatesv1.UsageAny, certificatesv1.UsageServerAuth, certificatesv1.UsageClientAuth, certificatesv1.UsageCodeSigning,
	certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME, certificatesv1.UsageIPsecEndSystem, certificatesv1.UsageIPsecTunnel,
	certificatesv1.UsageIPsecUser, certificatesv1.UsageTimestamping, certificatesv1.UsageOCSPSigning,
	certificatesv1.UsageMicrosoftSGC, certificatesv1.UsageNetscapeSGC,
}

// parseCertificateRequest reads spec.request of a CertificateSigningRequest, which is
// in PEM, and makes sure that its sender has the key.
func parseCertificateRequest(b []byte) (*x509.CertificateRequest, error) {
	if len(b) > maxCertificateRequest {
		return nil, fmt.Errorf("must be no longer than %d bytes", maxCertificateRequest)
	}
	block, rest := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("PEM block type must be CERTIFICATE REQUEST")
	}
	if len(strings.TrimSpace(string(rest))) > 0 {
		return nil, errors.New("must be one PEM block and nothing more")
	}
	r, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, err
	}
	return r, r.CheckSignature()
}

// CertificateSigningRequest validates one ("Certificates and Certificate Signing
// Requests" in Kubernetes' documentation). Its spec does not change.
func CertificateSigningRequest(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	var errs field.ErrorList
	spec := field.NewPath("spec")
	if old != nil {
		return apivalidation.ValidateImmutableField(c.Spec, old.Spec, spec)
	}
	request, err := parseCertificateRequest(c.Spec.Request)
	if err != nil {
		errs = append(errs, field.Invalid(spec.Child("request"), c.Spec.Request, err.Error()))
	}
	errs = append(errs, signerName(spec.Child("signerName"), c.Spec.SignerName)...)
	// What the admission plugin CertificateSubjectRestriction refuses.
	if request != nil && c.Spec.SignerName == certificatesv1.KubeAPIServerClientSignerName && slices.Contains(request.Subject.Organization, user.SystemPrivilegedGroup) {
		errs = append(errs, field.Forbidden(spec.Child("request"), fmt.Sprintf("use of %s signer with %s group is not allowed", c.Spec.SignerName, user.SystemPrivilegedGroup)))
	}
	if s := c.Spec.ExpirationSeconds; s != nil && *s < minExpirationSeconds {
		errs = append(errs, field.Invalid(spec.Child("expirationSeconds"), *s, fmt.Sprintf("may not specify a duration less than %d seconds", minExpirationSeconds)))
	}
	usages := spec.Child("usages")
	if len(c.Spec.Usages) == 0 {
		errs = append(errs, field.Required(usages, "usages is required"))
	}
	for i, u := range c.Spec.Usages {
		if !slices.Contains(keyUsages, u) {
			errs = append(errs, field.NotSupported(usages.Index(i), u, keyUsages))
		}
		if slices.Contains(c.Spec.Usages[:i], u) {
			errs = append(errs, field.Duplicate(usages.Index(i), u))
		}
	}
	return errs
}

// signerName validates a name such as example.com/mine.
func signerName(p *field.Path, name string) field.ErrorList {
	domain, rest, found := strings.Cut(name, "/")
	switch {
	case name == "":
		return field.ErrorList{field.Required(p, "")}
	case !found || strings.Contains(rest, "/"):
		return field.ErrorList{field.Invalid(p, name, `must be a fully qualified domain and path of the form "example.com/signer-name"`)}
	}
	var errs field.ErrorList
	for _, part := range []string{domain, rest} {
		for _, why := range validation.IsDNS1123Subdomain(part) {
			errs = append(errs, field.Invalid(p, name, why))
		}
	}
	if !strings.Contains(domain, ".") {
		errs = append(errs, field.Invalid(p, name, "should be a domain with at least two segments separated by dots"))
	}
	return errs
}

// CertificateSigningRequestStatus validates a write to /status or /approval.
func CertificateSigningRequestStatus(c, old *certificatesv1.CertificateSigningRequest) field.ErrorList {
	var errs field.ErrorList
	status := field.NewPath("status")
	certificate, conditions := status.Child("certificate"), status.Child("conditions")
	if len(old.Status.Certificate) > 0 {
		errs = append(errs, apivalidation.ValidateImmutableField(c.Status.Certificate, old.Status.Certificate, certificate)...)
	} else if len(c.Status.Certificate) > 0 {
		if err := pemCertificates(c.Status.Certificate); err != nil {
			errs = append(errs, field.Invalid(certificate, "", err.Error()))
		}
	}
	has := map[certificatesv1.RequestConditionType]bool{}
	for i, d := range c.Status.Conditions {
		p := conditions.Index(i)
		if d.Type == "" {
			errs = append(errs, field.Required(p.Child("type"), ""))
		}
		if has[d.Type] {
			errs = append(errs, field.Duplicate(p.Child("type"), d.Type))
		}
		has[d.Type] = true
		if final(d.Type) {
			errs = append(errs, oneOf(p.Child("status"), d.Status, corev1.ConditionTrue)...)
		} else {
			errs = append(errs, oneOf(p.Child("status"), d.Status, corev1.ConditionTrue, corev1.ConditionFalse, corev1.ConditionUnknown)...)
		}
	}
	if has[certificatesv1.CertificateApproved] && has[certificatesv1.CertificateDenied] {
		errs = append(errs, field.Invalid(conditions, "", "Approved and Denied conditions are mutually exclusive"))
	}
	for _, d := range old.Status.Conditions {
		if final(d.Type) && !has[d.Type] {
			errs = append(errs, field.Forbidden(conditions, fmt.Sprintf("updates may not remove a condition of type %q", d.Type)))
		}
	}
	return errs
}

// final says that a condition stays once it is there.
func final(t certificatesv1.RequestConditionType) bool {
	return t == certificatesv1.CertificateApproved || t == certificatesv1.CertificateDenied || t == certificatesv1.CertificateFailed
}

// pemCertificates says what is wrong with a chain of certificates.
func pemCertificates(b []byte) error {
	n := 0
	for ; len(b) > 0; n++ {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" || len(block.Headers) > 0 {
			return errors.New("only CERTIFICATE PEM blocks without headers are allowed")
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
	}
	if n == 0 {
		return errors.New("must contain at least one CERTIFICATE PEM block")
	}
	return nil
}
