package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// repairServices makes what is allocated agree with the services: a crash between
// the write of one and of the other, or a store put back from a copy, may have left
// them apart. What two services claim the older one has.
func (s *Server) repairServices(ctx context.Context, client kubernetes.Interface) error {
	services, err := s.listServices(ctx)
	if err != nil {
		return err
	}
	ips, ports := inUse(services)
	if err := errors.Join(s.addresses[0].repair(ctx, ips), s.ports.repair(ctx, ports)); err != nil {
		return err
	}
	for i := range services {
		svc := &services[i]
		if !lacksPorts(svc) || svc.DeletionTimestamp != nil {
			continue
		}
		// Any write gives a service what it should have.
		slog.Warn("service has no node ports, it is given some now", "service", serviceOwner(svc))
		if _, err := client.CoreV1().Services(svc.Namespace).Update(ctx, svc, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("give node ports to the service %s: %w", serviceOwner(svc), err)
		}
	}
	return nil
}

// inUse maps addresses and node ports to the services that have them.
func inUse(services []corev1.Service) (ips, ports map[string]string) {
	ips, ports = map[string]string{}, map[string]string{}
	claim := func(what string, in map[string]string, name, owner string) {
		if has, twice := in[name]; twice && has != owner {
			slog.Warn("two services have the same "+what+"; make the younger one again", what, name, "older", has, "younger", owner)
			return
		}
		in[name] = owner
	}
	for i := range services {
		svc := &services[i]
		for _, ip := range ipsOf(svc) {
			claim("address", ips, ip, serviceOwner(svc))
		}
		for port := range portsOf(svc) {
			claim("port", ports, strconv.Itoa(int(port)), serviceOwner(svc))
		}
	}
	return ips, ports
}
