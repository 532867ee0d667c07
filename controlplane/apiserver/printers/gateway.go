package printers

import (
	"encoding/json"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// GatewayClasses prints GatewayClasses.
var GatewayClasses = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Controller", "Who serves the class."), column("Accepted", "Whether it does."), ageColumn(),
		wide("Description", "What the class is for."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*gatewayv1.GatewayClass)
		return []any{
			c.Name, string(c.Spec.ControllerName), conditionStatus(c.Status.Conditions, string(gatewayv1.GatewayClassConditionStatusAccepted)),
			age(c.CreationTimestamp, now), ptr.Deref(c.Spec.Description, ""),
		}
	},
}

// Gateways prints Gateways.
var Gateways = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Class", "The class that it belongs to."), column("Address", "Where it is reached."),
		column("Programmed", "Whether it serves what it says."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		g := obj.(*gatewayv1.Gateway)
		var addresses []string
		for _, a := range g.Status.Addresses {
			addresses = append(addresses, a.Value)
		}
		return []any{
			g.Name, string(g.Spec.GatewayClassName), strings.Join(addresses, ","),
			conditionStatus(g.Status.Conditions, string(gatewayv1.GatewayConditionProgrammed)), age(g.CreationTimestamp, now),
		}
	},
}

// HTTPRoutes prints HTTPRoutes.
var HTTPRoutes = routeTable(func(obj runtime.Object) (*metav1.ObjectMeta, []gatewayv1.Hostname) {
	r := obj.(*gatewayv1.HTTPRoute)
	return &r.ObjectMeta, r.Spec.Hostnames
})

// GRPCRoutes prints GRPCRoutes.
var GRPCRoutes = routeTable(func(obj runtime.Object) (*metav1.ObjectMeta, []gatewayv1.Hostname) {
	r := obj.(*gatewayv1.GRPCRoute)
	return &r.ObjectMeta, r.Spec.Hostnames
})

func routeTable(of func(runtime.Object) (*metav1.ObjectMeta, []gatewayv1.Hostname)) Table {
	return Table{
		Columns: []metav1.TableColumnDefinition{nameColumn(), column("Hostnames", "The names that it is for."), ageColumn()},
		Row: func(obj runtime.Object, now time.Time) []any {
			m, hostnames := of(obj)
			text := ""
			if len(hostnames) > 0 {
				b, _ := json.Marshal(hostnames) // strings
				text = string(b)
			}
			return []any{m.Name, text, age(m.CreationTimestamp, now)}
		},
	}
}

// ReferenceGrants prints ReferenceGrants.
var ReferenceGrants = Table{
	Columns: []metav1.TableColumnDefinition{nameColumn(), ageColumn()},
	Row: func(obj runtime.Object, now time.Time) []any {
		g := obj.(*gatewayv1.ReferenceGrant)
		return []any{g.Name, age(g.CreationTimestamp, now)}
	},
}

func conditionStatus(all []metav1.Condition, name string) string {
	if c := meta.FindStatusCondition(all, name); c != nil {
		return string(c.Status)
	}
	return ""
}
