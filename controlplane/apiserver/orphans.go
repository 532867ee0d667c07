package apiserver

import (
	"context"

	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/warning"
)

// Delete warns of dependents that stay behind.
func (s *store) Delete(ctx context.Context, name string, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions) (runtime.Object, bool, error) {
	s.warnOrphans(ctx, options)
	return s.Store.Delete(ctx, name, validate, options)
}

// DeleteCollection warns of dependents that stay behind.
func (s *store) DeleteCollection(ctx context.Context, validate rest.ValidateObjectFunc, options *metav1.DeleteOptions, list *internalversion.ListOptions) (runtime.Object, error) {
	s.warnOrphans(ctx, options)
	return s.Store.DeleteCollection(ctx, validate, options, list)
}

func (s *store) warnOrphans(ctx context.Context, options *metav1.DeleteOptions) {
	silent := options == nil || options.PropagationPolicy == nil && options.OrphanDependents == nil
	if s.r.orphans != "" && silent {
		warning.AddWarning(ctx, "", s.r.orphans)
	}
}
