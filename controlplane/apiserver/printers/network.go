package printers

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// shown is how many addresses fit in a cell before "+ n more...".
const shown = 3

// Services prints Services.
var Services = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Type", "How the service is reached."), column("Cluster-IP", "Its address."),
		column("External-IP", "Its addresses from outside."), column("Port(s)", "Its ports."), ageColumn(),
		wide("Selector", "The labels of its pods."),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		s := obj.(*corev1.Service)
		ip := none
		if len(s.Spec.ClusterIPs) > 0 {
			ip = s.Spec.ClusterIPs[0]
		} else if s.Spec.ClusterIP != "" {
			ip = s.Spec.ClusterIP
		}
		return []any{
			s.Name, string(s.Spec.Type), ip, externalIP(s), servicePorts(s.Spec.Ports), age(s.CreationTimestamp, now),
			labelsCell(s.Spec.Selector),
		}
	},
}

func labelsCell(set map[string]string) string {
	return orNone(metav1.FormatLabelSelector(&metav1.LabelSelector{MatchLabels: set}))
}

func externalIP(s *corev1.Service) string {
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var ips []string
		for _, i := range s.Status.LoadBalancer.Ingress {
			if i.IP != "" {
				ips = append(ips, i.IP)
			} else if i.Hostname != "" {
				ips = append(ips, i.Hostname)
			}
		}
		if ips = append(ips, s.Spec.ExternalIPs...); len(ips) > 0 {
			return strings.Join(ips, ",")
		}
		return "<pending>"
	}
	return orNone(strings.Join(s.Spec.ExternalIPs, ","))
}

func servicePorts(ports []corev1.ServicePort) string {
	var out []string
	for _, p := range ports {
		if p.NodePort > 0 {
			out = append(out, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
			continue
		}
		out = append(out, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
	}
	return orNone(strings.Join(out, ","))
}

// Endpoints prints Endpoints.
var Endpoints = Table{
	Columns: []metav1.TableColumnDefinition{nameColumn(), column("Endpoints", "The ready addresses."), ageColumn()},
	Row: func(obj runtime.Object, now time.Time) []any {
		e := obj.(*corev1.Endpoints)
		var all []string
		for i := range e.Subsets {
			s := &e.Subsets[i]
			for _, a := range s.Addresses {
				if len(s.Ports) == 0 {
					all = append(all, a.IP)
				}
				for _, p := range s.Ports {
					all = append(all, net.JoinHostPort(a.IP, strconv.Itoa(int(p.Port))))
				}
			}
		}
		return []any{e.Name, some(all, none), age(e.CreationTimestamp, now)}
	},
}

// some joins the first few of a list.
func some(all []string, empty string) string {
	switch {
	case len(all) == 0:
		return empty
	case len(all) <= shown:
		return strings.Join(all, ",")
	}
	return fmt.Sprintf("%s + %d more...", strings.Join(all[:shown], ","), len(all)-shown)
}

// EndpointSlices prints EndpointSlices.
var EndpointSlices = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("AddressType", "The kind of the addresses."), column("Ports", "The ports."),
		column("Endpoints", "The addresses."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		s := obj.(*discoveryv1.EndpointSlice)
		var ports, all []string
		for _, p := range s.Ports {
			switch {
			case p.Port != nil:
				ports = append(ports, strconv.Itoa(int(*p.Port)))
			case p.Name != nil && *p.Name != "":
				ports = append(ports, *p.Name)
			}
		}
		for i := range s.Endpoints {
			all = append(all, s.Endpoints[i].Addresses...)
		}
		return []any{s.Name, string(s.AddressType), some(ports, "<unset>"), some(all, "<unset>"), age(s.CreationTimestamp, now)}
	},
}
