package apiserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/utils/ptr"
)

// mayHaveNodePorts tells whether a service is of a type that has node ports.
func mayHaveNodePorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort || svc.Spec.Type == corev1.ServiceTypeLoadBalancer
}

// needsNodePorts tells whether each of its ports gets one without being asked.
func needsNodePorts(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeNodePort ||
		(svc.Spec.Type == corev1.ServiceTypeLoadBalancer && ptr.Deref(svc.Spec.AllocateLoadBalancerNodePorts, true))
}

func needsHealthCheckPort(svc *corev1.Service) bool {
	return svc.Spec.Type == corev1.ServiceTypeLoadBalancer && svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// lacksPorts tells whether a stored service does not have all that it needs.
func lacksPorts(svc *corev1.Service) bool {
	return (needsHealthCheckPort(svc) && svc.Spec.HealthCheckNodePort == 0) ||
		(needsNodePorts(svc) && slices.ContainsFunc(svc.Spec.Ports, func(p corev1.ServicePort) bool { return p.NodePort == 0 }))
}

// portsOf are the node ports that a service has.
func portsOf(svc *corev1.Service) map[int32]bool {
	out := map[int32]bool{}
	if mayHaveNodePorts(svc) {
		for _, p := range svc.Spec.Ports {
			out[p.NodePort] = true
		}
	}
	if needsHealthCheckPort(svc) {
		out[svc.Spec.HealthCheckNodePort] = true
	}
	delete(out, 0)
	return out
}

// keepAllocated keeps what a client does not send of what the service has, and takes
// away what belongs to a type that the service has no more and that the client left
// as it was.
func keepAllocated(svc, old *corev1.Service) {
	spec, was := &svc.Spec, &old.Spec
	keepAddresses(spec, was)
	if mayHaveNodePorts(svc) && mayHaveNodePorts(old) {
		keepNodePorts(spec.Ports, was.Ports)
	}
	if needsHealthCheckPort(svc) && needsHealthCheckPort(old) && spec.HealthCheckNodePort == 0 {
		spec.HealthCheckNodePort = was.HealthCheckNodePort
	}
	dropOfOtherType(svc, old)
}

// keepAddresses is keepAllocated for addresses and their families. Who changes the single
// clusterIP alone means the first of clusterIPs as well.
func keepAddresses(spec, was *corev1.ServiceSpec) {
	if spec.ClusterIP != was.ClusterIP && len(spec.ClusterIPs) > 0 && slices.Equal(spec.ClusterIPs, was.ClusterIPs) {
		if spec.ClusterIP == "" {
			spec.ClusterIPs = nil
		} else {
			spec.ClusterIPs = append([]string{spec.ClusterIP}, spec.ClusterIPs[1:]...)
		}
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		if spec.ClusterIP == was.ClusterIP {
			spec.ClusterIP, spec.ClusterIPs = "", nil
		}
		if equality.Semantic.DeepEqual(spec.IPFamilyPolicy, was.IPFamilyPolicy) && slices.Equal(spec.IPFamilies, was.IPFamilies) {
			spec.IPFamilyPolicy, spec.IPFamilies = nil, nil
		}
		return
	}
	if was.Type == corev1.ServiceTypeExternalName {
		return
	}
	if spec.ClusterIP == "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIP = was.ClusterIP
	}
	if len(spec.ClusterIPs) == 0 && spec.ClusterIP == was.ClusterIP {
		spec.ClusterIPs = slices.Clone(was.ClusterIPs)
	}
	if spec.IPFamilyPolicy == nil && len(spec.IPFamilies) == 0 {
		spec.IPFamilyPolicy, spec.IPFamilies = was.IPFamilyPolicy, slices.Clone(was.IPFamilies)
	}
}

// keepNodePorts goes by the ports' names, since whatever else of them may have been
// changed.
func keepNodePorts(ports, was []corev1.ServicePort) {
	named := map[string]int32{}
	for _, p := range was {
		named[p.Name] = p.NodePort
	}
	used := map[int32]bool{}
	for _, p := range ports {
		used[p.NodePort] = true
	}
	for i := range ports {
		if p := &ports[i]; p.NodePort == 0 && !used[named[p.Name]] {
			p.NodePort = named[p.Name]
		}
	}
}

func dropOfOtherType(svc, old *corev1.Service) {
	spec, was := &svc.Spec, &old.Spec
	if mayHaveNodePorts(old) && !mayHaveNodePorts(svc) && samePorts(spec.Ports, was.Ports) {
		for i := range spec.Ports {
			spec.Ports[i].NodePort = 0
		}
	}
	if needsHealthCheckPort(old) && !needsHealthCheckPort(svc) && spec.HealthCheckNodePort == was.HealthCheckNodePort {
		spec.HealthCheckNodePort = 0
	}
	isBalancer, wasBalancer := spec.Type == corev1.ServiceTypeLoadBalancer, was.Type == corev1.ServiceTypeLoadBalancer
	if wasBalancer && !isBalancer {
		if equality.Semantic.DeepEqual(spec.AllocateLoadBalancerNodePorts, was.AllocateLoadBalancerNodePorts) {
			spec.AllocateLoadBalancerNodePorts = nil
		}
		if equality.Semantic.DeepEqual(spec.LoadBalancerClass, was.LoadBalancerClass) {
			spec.LoadBalancerClass = nil
		}
	}
	external := func(s *corev1.Service) bool {
		return mayHaveNodePorts(s) || (s.Spec.Type == corev1.ServiceTypeClusterIP && len(s.Spec.ExternalIPs) > 0)
	}
	if external(old) && !external(svc) && spec.ExternalTrafficPolicy == was.ExternalTrafficPolicy {
		spec.ExternalTrafficPolicy = ""
	}
}

// samePorts tells whether no node port was changed.
func samePorts(a, b []corev1.ServicePort) bool {
	had := map[int32]bool{}
	for _, p := range b {
		had[p.NodePort] = true
	}
	return !slices.ContainsFunc(a, func(p corev1.ServicePort) bool { return p.NodePort != 0 && !had[p.NodePort] })
}

// nodePorts gives each port of a service one. Ports of the same number, by different
// protocols, share it unless told otherwise.
func (a *allocation) nodePorts(ctx context.Context) error {
	if !mayHaveNodePorts(a.svc) {
		return nil
	}
	shared := map[int32]int32{}
	for i, p := range a.svc.Spec.Ports {
		if p.NodePort == 0 {
			continue
		}
		if _, ok := shared[p.Port]; !ok {
			shared[p.Port] = p.NodePort
		}
		if err := a.reserve(ctx, p.NodePort); err != nil {
			return a.invalidPort(field.NewPath("spec", "ports").Index(i).Child("nodePort"), p.NodePort, err)
		}
	}
	if !needsNodePorts(a.svc) || a.dryRun {
		return nil // which ones they will be is not known
	}
	for i := range a.svc.Spec.Ports {
		p := &a.svc.Spec.Ports[i]
		if p.NodePort != 0 {
			continue
		}
		if shared[p.Port] == 0 {
			port, err := a.any(ctx)
			if err != nil {
				return apierrors.NewInternalError(fmt.Errorf("failed to allocate a nodePort: %w", err))
			}
			shared[p.Port] = port
		}
		p.NodePort = shared[p.Port]
	}
	return nil
}

func (a *allocation) healthCheckNodePort(ctx context.Context) error {
	port := &a.svc.Spec.HealthCheckNodePort
	if !needsHealthCheckPort(a.svc) {
		return nil
	}
	if needsHealthCheckPort(a.old) && a.old.Spec.HealthCheckNodePort != 0 && *port != a.old.Spec.HealthCheckNodePort {
		return a.invalidPort(field.NewPath("spec", "healthCheckNodePort"), *port, errors.New("field is immutable"))
	}
	if *port != 0 {
		if err := a.reserve(ctx, *port); err != nil {
			return apierrors.NewInternalError(fmt.Errorf("failed to allocate requested HealthCheck NodePort %d: %w", *port, err))
		}
		return nil
	}
	if a.dryRun {
		return nil
	}
	got, err := a.any(ctx)
	if err != nil {
		return apierrors.NewInternalError(fmt.Errorf("failed to allocate a HealthCheck NodePort: %w", err))
	}
	*port = got
	return nil
}

// reserve takes a port that was asked for by number, unless the service has it.
func (a *allocation) reserve(ctx context.Context, port int32) error {
	if portsOf(a.old)[port] {
		return nil
	}
	if a.dryRun {
		return a.ports.check(ctx, port, serviceOwner(a.svc))
	}
	taken, err := a.ports.reserve(ctx, port, serviceOwner(a.svc))
	if taken {
		a.releaseLater(port)
	}
	return err
}

func (a *allocation) any(ctx context.Context) (int32, error) {
	port, err := a.ports.any(ctx, serviceOwner(a.svc))
	if err == nil {
		a.releaseLater(port)
	}
	return port, err
}

func (a *allocation) releaseLater(port int32) {
	a.undo = append(a.undo, func(ctx context.Context) { a.ports.release(ctx, strconv.Itoa(int(port)), serviceOwner(a.svc)) })
}

func (a *allocation) invalidPort(path *field.Path, port int32, err error) error {
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), a.svc.Name,
		field.ErrorList{field.Invalid(path, port, err.Error())})
}
