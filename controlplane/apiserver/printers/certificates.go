package printers

import (
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// CertificateSigningRequests prints CertificateSigningRequests.
var CertificateSigningRequests = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), ageColumn(), column("SignerName", "Who is asked to sign."), column("Requestor", "Who asks."),
		column("RequestedDuration", "How long the certificate is to last."), column("Condition", "What has become of it."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*certificatesv1.CertificateSigningRequest)
		long := none
		if s := c.Spec.ExpirationSeconds; s != nil {
			long = age(metav1.NewTime(now.Add(-time.Duration(*s)*time.Second)), now)
		}
		return []any{c.Name, age(c.CreationTimestamp, now), c.Spec.SignerName, c.Spec.Username, long, certificateCondition(c)}
	},
}

// certificateCondition is what kubectl shows of a request's status.
func certificateCondition(c *certificatesv1.CertificateSigningRequest) string {
	has := map[certificatesv1.RequestConditionType]bool{}
	for _, d := range c.Status.Conditions {
		has[d.Type] = true
	}
	var words []string
	switch {
	case has[certificatesv1.CertificateDenied]:
		words = append(words, "Denied")
	case has[certificatesv1.CertificateApproved]:
		words = append(words, "Approved")
	default:
		words = append(words, "Pending")
	}
	if has[certificatesv1.CertificateFailed] {
		words = append(words, "Failed")
	}
	if len(c.Status.Certificate) > 0 {
		words = append(words, "Issued")
	}
	return strings.Join(words, ",")
}
