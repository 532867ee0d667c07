package apiserver

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"
)

func serviceSubresources(s *Server, st *store) map[string]rest.Storage {
	return map[string]rest.Storage{"proxy": &serviceProxyREST{server: s, services: st}}
}

// needsClusterIP tells whether a service is one that has an address.
func needsClusterIP(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.ClusterIP != corev1.ClusterIPNone
}

// ipsOf are the addresses that a service has.
func ipsOf(svc *corev1.Service) []string {
	switch {
	case !needsClusterIP(svc) || svc.Spec.ClusterIP == "":
		return nil
	case len(svc.Spec.ClusterIPs) == 0:
		return []string{svc.Spec.ClusterIP}
	}
	return svc.Spec.ClusterIPs
}

// configureServices gives services their addresses and node ports.
func configureServices(s *Server, st *registry.Store) {
	st.BeginCreate = func(ctx context.Context, obj runtime.Object, options *metav1.CreateOptions) (registry.FinishFunc, error) {
		return s.allocate(ctx, obj.(*corev1.Service), &corev1.Service{}, dryrun.IsDryRun(options.DryRun))
	}
	st.BeginUpdate = func(ctx context.Context, obj, old runtime.Object, options *metav1.UpdateOptions) (registry.FinishFunc, error) {
		svc, oldSvc := obj.(*corev1.Service), old.(*corev1.Service)
		keepAllocated(svc, oldSvc)
		return s.allocate(ctx, svc, oldSvc, dryrun.IsDryRun(options.DryRun))
	}
	st.AfterDelete = func(obj runtime.Object, options *metav1.DeleteOptions) {
		if svc := obj.(*corev1.Service); !dryrun.IsDryRun(options.DryRun) {
			s.releaseUnused(context.Background(), svc, &corev1.Service{})
		}
	}
}

// serviceOwner names a service among all that there are and have been: one that is
// made again under the same name must not lose what the former gives back.
func serviceOwner(svc *corev1.Service) string {
	return svc.Namespace + "/" + svc.Name + "/" + string(svc.UID)
}

// allocation is what one write of a service takes.
type allocation struct {
	*Server
	svc    *corev1.Service
	old    *corev1.Service // empty when the service is made
	dryRun bool
	undo   []func(context.Context)
}

// allocate sets what a service needs and does not have yet. The returned function
// gives it back when the write that it is for fails, and otherwise what the service
// does not need any more.
func (s *Server) allocate(ctx context.Context, svc, old *corev1.Service, dryRun bool) (registry.FinishFunc, error) {
	a := &allocation{Server: s, svc: svc, old: old, dryRun: dryRun}
	err := a.clusterIPs(ctx)
	if err == nil {
		err = a.nodePorts(ctx)
	}
	if err == nil {
		err = a.healthCheckNodePort(ctx)
	}
	if err != nil {
		a.rollBack(ctx)
		return nil, err
	}
	return func(ctx context.Context, success bool) {
		switch {
		case !success:
			a.rollBack(ctx)
		case !dryRun:
			s.releaseUnused(ctx, old, svc)
		}
	}, nil
}

func (a *allocation) rollBack(ctx context.Context) {
	for _, f := range a.undo {
		f(ctx)
	}
	a.undo = nil
}

// clusterIPs gives a service an address of each family that it has.
func (a *allocation) clusterIPs(ctx context.Context) error {
	svc := a.svc
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP != "" {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	if errs := setFamilies(svc, a.old, a.families()); len(errs) > 0 {
		return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), svc.Name, errs)
	}
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		return nil
	}
	if len(svc.Spec.ClusterIPs) > 0 && svc.Spec.ClusterIPs[0] != svc.Spec.ClusterIP {
		return nil // refused with the rest of the service
	}
	had := ipsOf(a.old)
	var ips []string
	for i, f := range svc.Spec.IPFamilies {
		wanted := ""
		if i < len(svc.Spec.ClusterIPs) {
			wanted = svc.Spec.ClusterIPs[i]
		}
		if wanted == "" || !slices.Contains(had, wanted) {
			var err error
			if wanted, err = a.address(ctx, f, wanted); err != nil {
				return err
			}
		}
		if wanted == "" {
			return nil // which one it will be is not known
		}
		ips = append(ips, wanted)
	}
	if len(ips) < len(svc.Spec.ClusterIPs) {
		return nil // more than it has families: refused with the rest of the service
	}
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ips[0], ips
	return nil
}

// address takes the address that is wanted, or else any; with a dry run none.
func (a *allocation) address(ctx context.Context, f corev1.IPFamily, wanted string) (string, error) {
	i := slices.IndexFunc(a.addresses, func(r *addresses) bool { return r.family() == f })
	r := a.addresses[i] // one of the cluster's
	owner := serviceOwner(a.svc)
	if a.dryRun {
		if wanted != "" {
			if err := r.check(ctx, wanted); err != nil {
				return "", invalidClusterIP(a.svc, wanted, err)
			}
		}
		return wanted, nil
	}
	ip, err := r.allocate(ctx, wanted, owner)
	switch {
	case err != nil && wanted == "":
		return "", apierrors.NewInternalError(fmt.Errorf("failed to allocate a serviceIP: %w", err))
	case err != nil:
		return "", invalidClusterIP(a.svc, wanted, err)
	}
	a.undo = append(a.undo, func(ctx context.Context) { r.release(ctx, ip, owner) })
	return ip, nil
}

// families are those of the cluster's services.
func (s *Server) families() []corev1.IPFamily {
	out := make([]corev1.IPFamily, 0, len(s.addresses))
	for _, r := range s.addresses {
		out = append(out, r.family())
	}
	return out
}

// releaseUnused gives back what old has and svc does not.
func (s *Server) releaseUnused(ctx context.Context, old, svc *corev1.Service) {
	for _, ip := range ipsOf(old) {
		if !slices.Contains(ipsOf(svc), ip) {
			s.addresses[0].release(ctx, ip, serviceOwner(old)) // the keys are the same for all ranges
		}
	}
	kept := portsOf(svc)
	for port := range portsOf(old) {
		if !kept[port] {
			s.ports.release(ctx, strconv.Itoa(int(port)), serviceOwner(old))
		}
	}
}

func invalidClusterIP(svc *corev1.Service, ip string, err error) error {
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), svc.Name, field.ErrorList{
		field.Invalid(field.NewPath("spec", "clusterIPs"), []string{ip}, fmt.Sprintf("failed to allocate IP %s: %v", ip, err)),
	})
}

// listServices reads every service from the store, the oldest first.
func (s *Server) listServices(ctx context.Context) ([]corev1.Service, error) {
	list, err := listAll(ctx, s.stores[corev1.Resource("services")])
	if err != nil {
		return nil, fmt.Errorf("apiserver: list services: %w", err)
	}
	services := list.(*corev1.ServiceList).Items
	slices.SortStableFunc(services, func(a, b corev1.Service) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return services, nil
}
