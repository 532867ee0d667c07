package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	openapinamer "k8s.io/apiserver/pkg/endpoints/openapi"
	"k8s.io/apiserver/pkg/endpoints/request"
	openapicommon "k8s.io/kube-openapi/pkg/common"
	openapiutil "k8s.io/kube-openapi/pkg/util"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"

	"gitk8s.dev/gitk8s/controlplane/apiserver/authz"
	"gitk8s.dev/gitk8s/controlplane/apiserver/gatewayapi"
	"gitk8s.dev/gitk8s/controlplane/apiserver/openapi"
	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
)

const (
	// gatewayClass is the class that every cluster has, and gatewayController who
	// serves it (docs/contracts.md).
	gatewayClass      = "gitk8s"
	gatewayController = "gitk8s.dev/gateway"
)

// gatewayResources are the kinds of the Gateway API. Their rules are those of the
// CustomResourceDefinitions that other clusters have for them.
func gatewayResources() []*resource {
	gv := gatewayv1.SchemeGroupVersion
	all := []*resource{
		{
			kind: "GatewayClass", plural: "gatewayclasses", singular: "gatewayclass", shortNames: []string{"gc"},
			newObject: object[gatewayv1.GatewayClass], newList: object[gatewayv1.GatewayClassList], table: printers.GatewayClasses,
			status: true, warnings: gatewayClassWarnings,
		},
		{
			kind: "Gateway", plural: "gateways", singular: "gateway", shortNames: []string{"gtw"}, namespaced: true,
			newObject: object[gatewayv1.Gateway], newList: object[gatewayv1.GatewayList], table: printers.Gateways,
			status: true, warnings: gatewayWarnings,
		},
		{
			kind: "HTTPRoute", plural: "httproutes", singular: "httproute", namespaced: true,
			newObject: object[gatewayv1.HTTPRoute], newList: object[gatewayv1.HTTPRouteList], table: printers.HTTPRoutes,
			status: true, warnings: httpRouteWarnings,
		},
		{
			kind: "GRPCRoute", plural: "grpcroutes", singular: "grpcroute", namespaced: true,
			newObject: object[gatewayv1.GRPCRoute], newList: object[gatewayv1.GRPCRouteList], table: printers.GRPCRoutes,
			status: true, warnings: grpcRouteWarnings,
		},
		{
			kind: "ReferenceGrant", plural: "referencegrants", singular: "referencegrant", shortNames: []string{"refgrant"}, namespaced: true,
			alsoIn:    []schema.GroupVersion{gatewayv1beta1.SchemeGroupVersion},
			newObject: object[gatewayv1.ReferenceGrant], newList: object[gatewayv1.ReferenceGrantList], table: printers.ReferenceGrants,
		},
	}
	for _, r := range all {
		r.gv, r.categories, r.generation, r.name = gv, []string{"gateway-api"}, true, apivalidation.NameIsDNSSubdomain
		kind := gatewayapi.Kind(r.kind)
		r.check = func(obj, old runtime.Object) field.ErrorList { return kind.Validate(obj, old) }
		r.validateStatus = r.check
	}
	return all
}

// addGatewayTypes teaches the scheme the defaults of the Gateway API, and how a
// ReferenceGrant changes between its versions, which have the same fields.
func addGatewayTypes(s *runtime.Scheme) error {
	for _, obj := range []runtime.Object{&gatewayv1.GatewayClass{}, &gatewayv1.Gateway{}, &gatewayv1.HTTPRoute{}, &gatewayv1.GRPCRoute{}} {
		gvks, _, err := s.ObjectKinds(obj)
		if err != nil {
			return err
		}
		kind := gatewayapi.Kind(gvks[0].Kind)
		s.AddTypeDefaultingFunc(obj, func(o any) { kind.Default(o.(runtime.Object)) })
	}
	convert := func(from, to any, f func(a, b any)) error {
		return s.AddConversionFunc(from, to, func(a, b any, _ conversion.Scope) error { f(a, b); return nil })
	}
	if err := convert((*gatewayv1beta1.ReferenceGrant)(nil), (*gatewayv1.ReferenceGrant)(nil), func(a, b any) {
		*b.(*gatewayv1.ReferenceGrant) = gatewayv1.ReferenceGrant(*a.(*gatewayv1beta1.ReferenceGrant))
	}); err != nil {
		return err
	}
	if err := convert((*gatewayv1.ReferenceGrant)(nil), (*gatewayv1beta1.ReferenceGrant)(nil), func(a, b any) {
		*b.(*gatewayv1beta1.ReferenceGrant) = gatewayv1beta1.ReferenceGrant(*a.(*gatewayv1.ReferenceGrant))
	}); err != nil {
		return err
	}
	return convert((*gatewayv1.ReferenceGrantList)(nil), (*gatewayv1beta1.ReferenceGrantList)(nil), func(a, b any) {
		from, to := a.(*gatewayv1.ReferenceGrantList), b.(*gatewayv1beta1.ReferenceGrantList)
		to.ListMeta, to.Items = from.ListMeta, make([]gatewayv1beta1.ReferenceGrant, len(from.Items))
		for i := range from.Items {
			to.Items[i] = gatewayv1beta1.ReferenceGrant(from.Items[i])
		}
	})
}

// modelName is the OpenAPI name of a type: those of the Gateway API do not know theirs,
// and their definitions are by the name of the Go type.
func modelName(name string) string {
	if strings.Contains(name, "/") {
		return openapiutil.ToRESTFriendlyName(name)
	}
	return name
}

func definitionName(namer *openapinamer.DefinitionNamer) func(string) (string, spec.Extensions) {
	return func(name string) (string, spec.Extensions) { return namer.GetDefinitionName(modelName(name)) }
}

func definitions(ref openapicommon.ReferenceCallback) map[string]openapicommon.OpenAPIDefinition {
	return openapi.GetOpenAPIDefinitions(func(name string) spec.Ref { return ref(modelName(name)) })
}

// bootstrapGatewayClass makes the class whose Gateways are served here. As with the
// class of Ingresses, an edit stays.
func bootstrapGatewayClass(ctx context.Context, client gatewayclient.Interface) error {
	_, err := client.GatewayV1().GatewayClasses().Create(ctx, &gatewayv1.GatewayClass{
		ObjectMeta: metav1.ObjectMeta{Name: gatewayClass},
		Spec:       gatewayv1.GatewayClassSpec{ControllerName: gatewayController},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create gatewayclass %s: %w", gatewayClass, err)
	}
	return nil
}

func gatewayClassWarnings(obj runtime.Object) []string {
	c := obj.(*gatewayv1.GatewayClass)
	return warn(field.NewPath("spec", "parametersRef"), c.Spec.ControllerName == gatewayController && c.Spec.ParametersRef != nil)
}

// gatewayWarnings names what the built-in controller does not look at. What it looks
// at and cannot do, the status says.
func gatewayWarnings(obj runtime.Object) []string {
	spec, path := &obj.(*gatewayv1.Gateway).Spec, field.NewPath("spec")
	out := warn(path.Child("infrastructure"), spec.Infrastructure != nil)
	out = append(out, warn(path.Child("allowedListeners"), spec.AllowedListeners != nil)...)
	out = append(out, warn(path.Child("defaultScope"), spec.DefaultScope != "")...)
	out = append(out, warn(path.Child("tls", "backend"), spec.TLS != nil && spec.TLS.Backend != nil)...)
	for i := range spec.Listeners {
		if tls := spec.Listeners[i].TLS; tls != nil {
			out = append(out, warn(path.Child("listeners").Index(i).Child("tls", "options"), len(tls.Options) > 0)...)
		}
	}
	return out
}

func httpRouteWarnings(obj runtime.Object) []string {
	spec, path := &obj.(*gatewayv1.HTTPRoute).Spec, field.NewPath("spec")
	out := warn(path.Child("useDefaultGateways"), spec.UseDefaultGateways != "")
	for i := range spec.Rules {
		r, p := &spec.Rules[i], path.Child("rules").Index(i)
		out = append(out, warn(p.Child("retry"), r.Retry != nil)...)
		out = append(out, warn(p.Child("sessionPersistence"), r.SessionPersistence != nil)...)
	}
	return out
}

func grpcRouteWarnings(obj runtime.Object) []string {
	spec, path := &obj.(*gatewayv1.GRPCRoute).Spec, field.NewPath("spec")
	out := warn(path.Child("useDefaultGateways"), spec.UseDefaultGateways != "")
	for i := range spec.Rules {
		out = append(out, warn(path.Child("rules").Index(i).Child("sessionPersistence"), spec.Rules[i].SessionPersistence != nil)...)
	}
	return out
}

// gatewayReader answers the authorizer about Gateways.
type gatewayReader struct{ server *Server }

var _ authz.Gateways = gatewayReader{}

// Certified implements authz.Gateways: the Secret is named by a listener of a Gateway
// whose class the workers serve, and which may name it.
func (r gatewayReader) Certified(ctx context.Context, namespace, secret string) (bool, error) {
	ctx = request.WithNamespace(ctx, metav1.NamespaceAll)
	cached := &internalversion.ListOptions{ResourceVersion: "0"}
	list := func(plural string) (runtime.Object, error) {
		return r.server.stores[schema.GroupResource{Group: gatewayv1.GroupName, Resource: plural}].List(ctx, cached)
	}
	gateways, err := list("gateways")
	if err != nil {
		return false, err
	}
	named := slices.DeleteFunc(gateways.(*gatewayv1.GatewayList).Items, func(g gatewayv1.Gateway) bool {
		return !certifies(&g, namespace, secret)
	})
	if len(named) == 0 {
		return false, nil
	}
	classes, err := list("gatewayclasses")
	if err != nil {
		return false, err
	}
	ours := map[string]bool{}
	for _, c := range classes.(*gatewayv1.GatewayClassList).Items {
		ours[c.Name] = c.Spec.ControllerName == gatewayController
	}
	grants, err := list("referencegrants")
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(named, func(g gatewayv1.Gateway) bool {
		return ours[string(g.Spec.GatewayClassName)] &&
			(g.Namespace == namespace || grantsSecret(grants.(*gatewayv1.ReferenceGrantList).Items, g.Namespace, namespace, secret))
	}), nil
}

// certifies says whether a listener of the Gateway names the Secret as a certificate.
func certifies(g *gatewayv1.Gateway, namespace, secret string) bool {
	for i := range g.Spec.Listeners {
		l := &g.Spec.Listeners[i]
		if l.TLS == nil || l.Protocol != gatewayv1.HTTPSProtocolType {
			continue
		}
		if slices.ContainsFunc(l.TLS.CertificateRefs, func(ref gatewayv1.SecretObjectReference) bool {
			return string(ref.Name) == secret && string(ptr.Deref(ref.Namespace, gatewayv1.Namespace(g.Namespace))) == namespace &&
				ptr.Deref(ref.Group, "") == "" && ptr.Deref(ref.Kind, "Secret") == "Secret"
		}) {
			return true
		}
	}
	return false
}

// grantsSecret says whether Gateways of one namespace may name a Secret of another.
func grantsSecret(grants []gatewayv1.ReferenceGrant, from, namespace, secret string) bool {
	return slices.ContainsFunc(grants, func(g gatewayv1.ReferenceGrant) bool {
		return g.Namespace == namespace &&
			slices.Contains(g.Spec.From, gatewayv1.ReferenceGrantFrom{Group: gatewayv1.GroupName, Kind: "Gateway", Namespace: gatewayv1.Namespace(from)}) &&
			slices.ContainsFunc(g.Spec.To, func(to gatewayv1.ReferenceGrantTo) bool {
				return to.Group == "" && to.Kind == "Secret" && (to.Name == nil || string(*to.Name) == secret)
			})
	})
}
