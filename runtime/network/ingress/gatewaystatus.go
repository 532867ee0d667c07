package ingress

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
)

// gatewayStatuses are what the API is told of the kinds of the Gateway API. Their
// conditions have neither time nor generation yet.
type gatewayStatuses struct {
	classes  []classStatus
	gateways []gatewayStatus
	routes   []routeStatus
}

type classStatus struct {
	class      *gatewayv1.GatewayClass
	conditions []metav1.Condition
}

type gatewayStatus struct {
	gateway    *gatewayv1.Gateway
	conditions []metav1.Condition
	listeners  []gatewayv1.ListenerStatus
}

type routeStatus struct {
	src     *source
	parents []gatewayv1.RouteParentStatus
}

// maxAddresses is how many the API takes of a Gateway.
const maxAddresses = 16

// features are what the class can do, in the Gateway API's words and in their order.
var features = []gatewayv1.FeatureName{
	"GRPCRoute", "GRPCRouteNamedRouteRule", "Gateway", "GatewayAddressEmpty", "GatewayHTTPListenerIsolation", "GatewayPort8080", "HTTPRoute",
	"HTTPRoute303RedirectStatusCode", "HTTPRoute307RedirectStatusCode", "HTTPRoute308RedirectStatusCode",
	"HTTPRouteBackendProtocolH2C", "HTTPRouteBackendProtocolWebSocket", "HTTPRouteBackendRequestHeaderModification",
	"HTTPRouteBackendTimeout", "HTTPRouteHostRewrite", "HTTPRouteMethodMatching", "HTTPRouteNamedRouteRule",
	"HTTPRouteParentRefPort", "HTTPRoutePathRedirect", "HTTPRoutePathRewrite", "HTTPRoutePortRedirect",
	"HTTPRouteQueryParamMatching", "HTTPRouteRequestTimeout", "HTTPRouteResponseHeaderModification", "HTTPRouteSchemeRedirect",
	"ReferenceGrant",
}

// publishGateways writes the statuses that differ from what the API has.
func publishGateways(ctx context.Context, client gatewayclient.Interface, all *gatewayStatuses, addresses []string) error {
	v1 := client.GatewayV1()
	var errs []error
	did := func(object metav1.Object, kind string, err error) {
		// Of an object that is gone or another one by now, a newer table tells.
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			errs = append(errs, fmt.Errorf("%s %s/%s: %w", kind, object.GetNamespace(), object.GetName(), err))
		}
	}
	for _, s := range all.classes {
		if c := s.next(); !equality.Semantic.DeepEqual(c.Status, s.class.Status) {
			_, err := v1.GatewayClasses().UpdateStatus(ctx, c, metav1.UpdateOptions{})
			did(c, "GatewayClass", err)
		}
	}
	for _, s := range all.gateways {
		if g := s.next(addresses); !equality.Semantic.DeepEqual(g.Status, s.gateway.Status) {
			_, err := v1.Gateways(g.Namespace).UpdateStatus(ctx, g, metav1.UpdateOptions{})
			did(g, "Gateway", err)
		}
	}
	for _, s := range all.routes {
		status := s.next()
		if equality.Semantic.DeepEqual(&status, s.src.status) {
			continue
		}
		var err error
		switch r := s.src.object.DeepCopyObject().(type) {
		case *gatewayv1.HTTPRoute:
			r.Status.RouteStatus = status
			_, err = v1.HTTPRoutes(r.Namespace).UpdateStatus(ctx, r, metav1.UpdateOptions{})
		case *gatewayv1.GRPCRoute:
			r.Status.RouteStatus = status
			_, err = v1.GRPCRoutes(r.Namespace).UpdateStatus(ctx, r, metav1.UpdateOptions{})
		}
		did(s.src.meta, string(s.src.kind), err)
	}
	return errors.Join(errs...)
}

// conditions puts the wanted ones over those that there are: the time is kept where
// the status is the same, and so are others' conditions.
func conditions(have, want []metav1.Condition, generation int64) []metav1.Condition {
	out := append([]metav1.Condition(nil), have...)
	for _, c := range want {
		c.ObservedGeneration = generation
		meta.SetStatusCondition(&out, c)
	}
	return out
}

func (s *classStatus) next() *gatewayv1.GatewayClass {
	c := s.class.DeepCopy()
	c.Status.Conditions = conditions(c.Status.Conditions, s.conditions, c.Generation)
	c.Status.SupportedFeatures = nil
	for _, f := range features {
		c.Status.SupportedFeatures = append(c.Status.SupportedFeatures, gatewayv1.SupportedFeature{Name: f})
	}
	return c
}

// next is the Gateway with the status that it should have; until there is an address
// nobody reaches it.
func (s *gatewayStatus) next(addresses []string) *gatewayv1.Gateway {
	g := s.gateway.DeepCopy()
	want := append([]metav1.Condition(nil), s.conditions...)
	for i := range want {
		if want[i].Type == "Programmed" && want[i].Status == metav1.ConditionTrue && len(addresses) == 0 {
			want[i] = condition("Programmed", false, "AddressNotAssigned", "no node is Ready")
		}
	}
	g.Status.Conditions = conditions(g.Status.Conditions, want, g.Generation)
	g.Status.Addresses = nil
	for _, a := range addresses[:min(len(addresses), maxAddresses)] {
		g.Status.Addresses = append(g.Status.Addresses, gatewayv1.GatewayStatusAddress{Type: ptr.To(gatewayv1.IPAddressType), Value: a})
	}
	had := map[gatewayv1.SectionName][]metav1.Condition{}
	for _, l := range g.Status.Listeners {
		had[l.Name] = l.Conditions
	}
	g.Status.Listeners = nil
	for _, l := range s.listeners {
		l.Conditions = conditions(had[l.Name], l.Conditions, g.Generation)
		g.Status.Listeners = append(g.Status.Listeners, l)
	}
	return g
}

// next is the status that the route should have: what other controllers say stays.
func (s *routeStatus) next() gatewayv1.RouteStatus {
	var out gatewayv1.RouteStatus
	for _, p := range s.src.status.Parents {
		if p.ControllerName != GatewayController {
			out.Parents = append(out.Parents, p)
		}
	}
	for _, p := range s.parents {
		var had []metav1.Condition
		for _, old := range s.src.status.Parents {
			if old.ControllerName == GatewayController && equality.Semantic.DeepEqual(old.ParentRef, p.ParentRef) {
				had = old.Conditions
			}
		}
		p.Conditions = conditions(had, p.Conditions, s.src.meta.Generation)
		out.Parents = append(out.Parents, p)
	}
	if out.Parents == nil {
		out.Parents = []gatewayv1.RouteParentStatus{}
	}
	return out
}
