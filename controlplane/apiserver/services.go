package apiserver

import (
	"context"
	"fmt"
	"slices"

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

// serviceUpdate keeps the allocated address of a client that does not send it.
func serviceUpdate(_ context.Context, obj, old runtime.Object) {
	svc, oldSvc := obj.(*corev1.Service), old.(*corev1.Service)
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		if svc.Spec.ClusterIP == oldSvc.Spec.ClusterIP {
			svc.Spec.ClusterIP, svc.Spec.ClusterIPs = "", nil
		}
		return
	}
	if svc.Spec.ClusterIP == "" && oldSvc.Spec.Type != corev1.ServiceTypeExternalName {
		svc.Spec.ClusterIP = oldSvc.Spec.ClusterIP
	}
	if len(svc.Spec.ClusterIPs) == 0 && svc.Spec.ClusterIP != "" {
		svc.Spec.ClusterIPs = []string{svc.Spec.ClusterIP}
	}
	setFamilies(svc)
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

// configureServices gives services their addresses.
func configureServices(s *Server, st *registry.Store) {
	st.BeginCreate = func(ctx context.Context, obj runtime.Object, options *metav1.CreateOptions) (registry.FinishFunc, error) {
		return s.allocate(ctx, obj.(*corev1.Service), dryrun.IsDryRun(options.DryRun))
	}
	st.BeginUpdate = func(ctx context.Context, obj, old runtime.Object, options *metav1.UpdateOptions) (registry.FinishFunc, error) {
		svc, oldSvc := obj.(*corev1.Service), old.(*corev1.Service)
		if needsClusterIP(svc) && oldSvc.Spec.Type == corev1.ServiceTypeExternalName {
			return s.allocate(ctx, svc, dryrun.IsDryRun(options.DryRun))
		}
		if svc.Spec.Type == corev1.ServiceTypeExternalName && needsClusterIP(oldSvc) && !dryrun.IsDryRun(options.DryRun) {
			return func(ctx context.Context, success bool) {
				if success {
					s.addresses.release(ctx, oldSvc.Spec.ClusterIP, serviceOwner(oldSvc))
				}
			}, nil
		}
		return func(context.Context, bool) {}, nil
	}
	st.AfterDelete = func(obj runtime.Object, options *metav1.DeleteOptions) {
		svc := obj.(*corev1.Service)
		if needsClusterIP(svc) && !dryrun.IsDryRun(options.DryRun) {
			s.addresses.release(context.Background(), svc.Spec.ClusterIP, serviceOwner(svc))
		}
	}
}

func serviceOwner(svc *corev1.Service) string { return svc.Namespace + "/" + svc.Name }

// allocate sets a service's address; the returned function gives it back when the
// write that it is for fails.
func (s *Server) allocate(ctx context.Context, svc *corev1.Service, dryRun bool) (registry.FinishFunc, error) {
	none := func(context.Context, bool) {}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return none, nil
	}
	setFamilies(svc)
	if svc.Spec.ClusterIP == corev1.ClusterIPNone {
		svc.Spec.ClusterIPs = []string{corev1.ClusterIPNone}
		return none, nil
	}
	if dryRun {
		return none, s.checkDryRun(ctx, svc)
	}
	ip, err := s.addresses.allocate(ctx, svc.Spec.ClusterIP, serviceOwner(svc))
	if err != nil {
		if svc.Spec.ClusterIP == "" {
			return nil, apierrors.NewInternalError(err)
		}
		return nil, invalidClusterIP(svc, err)
	}
	svc.Spec.ClusterIP, svc.Spec.ClusterIPs = ip, []string{ip}
	return func(ctx context.Context, success bool) {
		if !success {
			s.addresses.release(ctx, ip, serviceOwner(svc))
		}
	}, nil
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

// listServices reads every service from the store.
func (s *Server) listServices(ctx context.Context) ([]corev1.Service, error) {
	list, err := listAll(ctx, s.stores[corev1.Resource("services")])
	if err != nil {
		return nil, fmt.Errorf("apiserver: list services: %w", err)
	}
	services := list.(*corev1.ServiceList).Items
	return slices.DeleteFunc(services, func(svc corev1.Service) bool {
		return !needsClusterIP(&svc) || svc.Spec.ClusterIP == ""
	}), nil
}
