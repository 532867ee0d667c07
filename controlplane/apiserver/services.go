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

func setFamilies(svc *corev1.Service) {
	if svc.Spec.IPFamilyPolicy == nil {
		policy := corev1.IPFamilyPolicySingleStack
		svc.Spec.IPFamilyPolicy = &policy
	}
	if len(svc.Spec.IPFamilies) == 0 {
		svc.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	}
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
	err := a.clusterIP(ctx)
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

func (a *allocation) clusterIP(ctx context.Context) error {
	svc := a.svc
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	setFamilies(svc)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		return nil
	}
	if hasClusterIP(a.old) {
		return nil // for ever
	}
	if a.dryRun {
		return a.checkDryRun(ctx, svc)
	}
	ip, err := a.addresses.allocate(ctx, svc.Spec.ClusterIP, serviceOwner(svc))
	if err != nil {
		if svc.Spec.ClusterIP == "" {
			return apierrors.NewInternalError(err)
		}
		return invalidClusterIP(svc, err)
	}
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ip, []string{ip}
	a.undo = append(a.undo, func(ctx context.Context) { a.addresses.release(ctx, ip, serviceOwner(svc)) })
	return nil
}

// hasClusterIP tells whether a stored service has an address.
func hasClusterIP(svc *corev1.Service) bool { return needsClusterIP(svc) && svc.Spec.ClusterIP != "" }

// releaseUnused gives back what old has and svc does not.
func (s *Server) releaseUnused(ctx context.Context, old, svc *corev1.Service) {
	if hasClusterIP(old) && svc.Spec.ClusterIP != old.Spec.ClusterIP {
		s.addresses.release(ctx, old.Spec.ClusterIP, serviceOwner(old))
	}
	kept := portsOf(svc)
	for port := range portsOf(old) {
		if !kept[port] {
			s.ports.release(ctx, strconv.Itoa(int(port)), serviceOwner(old))
		}
	}
}

// checkDryRun answers whether a requested address would be granted. Without a
// request the field stays empty: which address it will be is not known.
func (s *Server) checkDryRun(ctx context.Context, svc *corev1.Service) error {
	if svc.Spec.ClusterIP == "" {
		return nil
	}
	if err := s.addresses.check(ctx, svc.Spec.ClusterIP); err != nil {
		return invalidClusterIP(svc, err)
	}
	svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	return nil
}

func invalidClusterIP(svc *corev1.Service, err error) error {
	return apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("Service").GroupKind(), svc.Name, field.ErrorList{
		field.Invalid(field.NewPath("spec", "clusterIPs"), []string{svc.Spec.ClusterIP},
			fmt.Sprintf("failed to allocate IP %s: %v", svc.Spec.ClusterIP, err)),
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
