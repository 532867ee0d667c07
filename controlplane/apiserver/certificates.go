package apiserver

import (
	"context"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	"k8s.io/apimachinery/pkg/api/validation/path"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// certificateResources are the requests for certificates ("Certificates and Certificate
// Signing Requests" in Kubernetes' documentation). The controller of that name signs.
func certificateResources() []*resource {
	return []*resource{
		{
			gv: certificatesv1.SchemeGroupVersion, kind: "CertificateSigningRequest", plural: "certificatesigningrequests",
			singular: "certificatesigningrequest", shortNames: []string{"csr"},
			newObject: object[certificatesv1.CertificateSigningRequest], newList: object[certificatesv1.CertificateSigningRequestList],
			table: printers.CertificateSigningRequests, name: func(name string, _ bool) []string { return path.IsValidPathSegmentName(name) },
			status: true, check: checked(validation.CertificateSigningRequest),
			validateStatus: checked(validation.CertificateSigningRequestStatus),
			prepareCreate:  certificateRequestCreate, prepareUpdate: certificateRequestUpdate, prepareStatusUpdate: certificateRequestStatus,
			fields: certificateRequestFields, subresources: certificateRequestSubresources,
		},
	}
}

// certificateRequestCreate writes down who asks, whatever the object says.
func certificateRequestCreate(ctx context.Context, obj runtime.Object) {
	spec := &obj.(*certificatesv1.CertificateSigningRequest).Spec
	spec.Username, spec.UID, spec.Groups, spec.Extra = "", "", nil, nil
	u, ok := request.UserFrom(ctx)
	if !ok {
		return
	}
	spec.Username, spec.UID, spec.Groups = u.GetName(), u.GetUID(), slices.Clone(u.GetGroups())
	for key, values := range u.GetExtra() {
		if spec.Extra == nil {
			spec.Extra = map[string]certificatesv1.ExtraValue{}
		}
		spec.Extra[key] = values
	}
}

func certificateRequestUpdate(_ context.Context, obj, old runtime.Object) {
	obj.(*certificatesv1.CertificateSigningRequest).Spec = old.(*certificatesv1.CertificateSigningRequest).Spec
}

func certificateRequestFields(obj runtime.Object) fields.Set {
	return fields.Set{"spec.signerName": obj.(*certificatesv1.CertificateSigningRequest).Spec.SignerName}
}

// decision says that a condition is of who approves, and not of who signs.
func decision(c certificatesv1.CertificateSigningRequestCondition) bool {
	return c.Type == certificatesv1.CertificateApproved || c.Type == certificatesv1.CertificateDenied
}

// certificateRequestStatus keeps from a write to /status what only /approval may change.
func certificateRequestStatus(_ context.Context, obj, old runtime.Object) {
	c, before := obj.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest)
	c.Status.Conditions = append(conditionsWhere(before, decision), conditionsWhere(c, not(decision))...)
	dateConditions(c, before)
}

func not(is func(certificatesv1.CertificateSigningRequestCondition) bool) func(certificatesv1.CertificateSigningRequestCondition) bool {
	return func(c certificatesv1.CertificateSigningRequestCondition) bool { return !is(c) }
}

func conditionsWhere(c *certificatesv1.CertificateSigningRequest, is func(certificatesv1.CertificateSigningRequestCondition) bool) (out []certificatesv1.CertificateSigningRequestCondition) {
	for _, d := range c.Status.Conditions {
		if is(d) {
			out = append(out, d)
		}
	}
	return out
}

// dateConditions fills in the times that were left out.
func dateConditions(c, before *certificatesv1.CertificateSigningRequest) {
	now := metav1.Now()
	for i := range c.Status.Conditions {
		d := &c.Status.Conditions[i]
		if d.LastUpdateTime.IsZero() {
			d.LastUpdateTime = now
		}
		if !d.LastTransitionTime.IsZero() {
			continue
		}
		d.LastTransitionTime = now
		for _, b := range before.Status.Conditions {
			if b.Type == d.Type && b.Status == d.Status && !b.LastTransitionTime.IsZero() {
				d.LastTransitionTime = b.LastTransitionTime
			}
		}
	}
}

func certificateRequestSubresources(_ *Server, st *store) map[string]rest.Storage {
	approval := *st.Store
	approval.UpdateStrategy = approvalStrategy{st.UpdateStrategy.(strategy)}
	approval.ResetFieldsStrategy = nil
	return map[string]rest.Storage{"approval": &statusStore{store: &approval}}
}

// approvalStrategy lets /approval change whether a request is approved or denied, and
// nothing else.
type approvalStrategy struct{ strategy }

// PrepareForUpdate implements rest.RESTUpdateStrategy.
func (approvalStrategy) PrepareForUpdate(_ context.Context, obj, old runtime.Object) {
	c, before := obj.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest)
	decided := conditionsWhere(c, decision)
	version, managed := c.ResourceVersion, c.ManagedFields
	before.DeepCopyInto(c)
	c.ResourceVersion, c.ManagedFields = version, managed
	c.Status.Conditions = append(decided, conditionsWhere(before, not(decision))...)
	dateConditions(c, before)
}

// ValidateUpdate implements rest.RESTUpdateStrategy.
func (approvalStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	return validation.CertificateSigningRequestStatus(obj.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest))
}
