package apiserver

import (
	"context"
	"fmt"
	"slices"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/authz"
	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

const (
	// ingressClass is the class that every cluster has, and ingressController who
	// serves it (docs/contracts.md).
	ingressClass      = "gitk8s"
	ingressController = "gitk8s.dev/ingress"
)

// networkingResources are the kinds that say who may reach a pod, and how the
// outside reaches a service by name.
func networkingResources() []*resource {
	gv := networkingv1.SchemeGroupVersion
	return []*resource{
		{
			gv: gv, kind: "IngressClass", plural: "ingressclasses", singular: "ingressclass", generation: true,
			newObject: object[networkingv1.IngressClass], newList: object[networkingv1.IngressClassList],
			table: printers.IngressClasses, name: apivalidation.NameIsDNSSubdomain,
			check: checked(validation.IngressClass),
		},
		{
			gv: gv, kind: "Ingress", plural: "ingresses", singular: "ingress", shortNames: []string{"ing"}, namespaced: true,
			newObject: object[networkingv1.Ingress], newList: object[networkingv1.IngressList],
			table: printers.Ingresses, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.Ingress), warnings: ingressWarnings,
		},
		{
			gv: gv, kind: "NetworkPolicy", plural: "networkpolicies", singular: "networkpolicy", shortNames: []string{"netpol"}, namespaced: true,
			newObject: object[networkingv1.NetworkPolicy], newList: object[networkingv1.NetworkPolicyList],
			table: printers.NetworkPolicies, name: apivalidation.NameIsDNSSubdomain, generation: true,
			check: checked(validation.NetworkPolicy),
		},
	}
}

// bootstrapIngressClass makes the class that Ingresses get when they name none. As
// with the storage class, an edit stays.
func bootstrapIngressClass(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.NetworkingV1().IngressClasses().Create(ctx, &networkingv1.IngressClass{
		ObjectMeta: metav1.ObjectMeta{Name: ingressClass, Annotations: map[string]string{networkingv1.AnnotationIsDefaultIngressClass: "true"}},
		Spec:       networkingv1.IngressClassSpec{Controller: ingressController},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create ingressclass %s: %w", ingressClass, err)
	}
	return nil
}

// ingressAdmission does what the admission plugin DefaultIngressClass of
// kube-apiserver does.
type ingressAdmission struct{ server *Server }

var _ admission.MutationInterface = ingressAdmission{}

// Handles implements admission.Interface.
func (ingressAdmission) Handles(op admission.Operation) bool { return op == admission.Create }

// Admit gives an Ingress that names no class the default one: of several the newest.
func (i ingressAdmission) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	ing, ok := a.GetObject().(*networkingv1.Ingress)
	if !ok || a.GetSubresource() != "" || ing.Spec.IngressClassName != nil {
		return nil
	}
	if _, ok := ing.Annotations[validation.AnnotationIngressClass]; ok {
		return nil
	}
	list, err := listAll(ctx, i.server.stores[networkingv1.Resource("ingressclasses")])
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	var best *networkingv1.IngressClass
	classes := list.(*networkingv1.IngressClassList).Items
	for n := range classes {
		c := &classes[n]
		if c.Annotations[networkingv1.AnnotationIsDefaultIngressClass] == "true" && (best == nil || newer(c, best)) {
			best = c
		}
	}
	if best != nil {
		ing.Spec.IngressClassName = &best.Name
	}
	return nil
}

// ingressWarnings names what the built-in controller does not serve.
func ingressWarnings(obj runtime.Object) []string {
	ing, path := obj.(*networkingv1.Ingress), field.NewPath("spec")
	var out []string
	if _, ok := ing.Annotations[validation.AnnotationIngressClass]; ok {
		out = append(out, fmt.Sprintf("annotation %q is deprecated, please use 'spec.ingressClassName' instead", validation.AnnotationIngressClass))
	}
	if b := ing.Spec.DefaultBackend; b != nil {
		out = append(out, warn(path.Child("defaultBackend", "resource"), b.Resource != nil)...)
	}
	for i, r := range ing.Spec.Rules {
		if r.HTTP == nil {
			continue
		}
		for n := range r.HTTP.Paths {
			out = append(out, warn(path.Child("rules").Index(i).Child("http", "paths").Index(n).Child("backend", "resource"), r.HTTP.Paths[n].Backend.Resource != nil)...)
		}
	}
	return out
}

// ingressReader answers the authorizer about Ingresses.
type ingressReader struct{ server *Server }

var _ authz.Ingresses = ingressReader{}

// Served implements authz.Ingresses: those whose class the workers serve.
func (r ingressReader) Served(ctx context.Context, namespace string) ([]networkingv1.Ingress, error) {
	cached := &internalversion.ListOptions{ResourceVersion: "0"}
	list, err := r.server.stores[networkingv1.Resource("ingressclasses")].List(ctx, cached)
	if err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	for _, c := range list.(*networkingv1.IngressClassList).Items {
		ours[c.Name] = c.Spec.Controller == ingressController
	}
	if list, err = r.server.stores[networkingv1.Resource("ingresses")].List(request.WithNamespace(ctx, namespace), cached); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list.(*networkingv1.IngressList).Items, func(i networkingv1.Ingress) bool {
		return !ours[ptr.Deref(i.Spec.IngressClassName, i.Annotations[validation.AnnotationIngressClass])]
	}), nil
}

// policyReader answers the authorizer about NetworkPolicies.
type policyReader struct{ server *Server }

var _ authz.Policies = policyReader{}

// Any implements authz.Policies.
func (r policyReader) Any(ctx context.Context) (bool, error) {
	list, err := r.server.stores[networkingv1.Resource("networkpolicies")].List(request.WithNamespace(ctx, metav1.NamespaceAll), &internalversion.ListOptions{Limit: 1})
	if err != nil {
		return false, err
	}
	return len(list.(*networkingv1.NetworkPolicyList).Items) > 0, nil
}
