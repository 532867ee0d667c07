package printers

import (
	"slices"
	"strings"
	"time"

	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/utils/ptr"
)

// IngressClasses prints IngressClasses.
var IngressClasses = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Controller", "Who serves the class."), column("Parameters", "What the controller is told."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*networkingv1.IngressClass)
		parameters := none
		if p := c.Spec.Parameters; p != nil {
			parameters = p.Kind
			if p.APIGroup != nil {
				parameters += "." + *p.APIGroup
			}
			parameters += "/" + p.Name
		}
		return []any{c.Name, c.Spec.Controller, parameters, age(c.CreationTimestamp, now)}
	},
}

// Ingresses prints Ingresses.
var Ingresses = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Class", "The class that it belongs to."), column("Hosts", "The names that it serves."),
		column("Address", "Where it is reached."), column("Ports", "Ports that it is reached at."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		i := obj.(*networkingv1.Ingress)
		var hosts, addresses []string
		for _, r := range i.Spec.Rules {
			if r.Host != "" && !slices.Contains(hosts, r.Host) {
				hosts = append(hosts, r.Host)
			}
		}
		for _, a := range i.Status.LoadBalancer.Ingress {
			if a.IP != "" {
				addresses = append(addresses, a.IP)
			} else if a.Hostname != "" {
				addresses = append(addresses, a.Hostname)
			}
		}
		ports := "80"
		if len(i.Spec.TLS) > 0 {
			ports = "80, 443"
		}
		return []any{i.Name, ptr.Deref(i.Spec.IngressClassName, none), some(hosts, "*"), strings.Join(addresses, ","), ports, age(i.CreationTimestamp, now)}
	},
}

// NetworkPolicies prints NetworkPolicies.
var NetworkPolicies = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Pod-Selector", "The pods that it is about."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		p := obj.(*networkingv1.NetworkPolicy)
		return []any{p.Name, metav1.FormatLabelSelector(&p.Spec.PodSelector), age(p.CreationTimestamp, now)}
	},
}
