package controller

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Take carries claims out and returns what owner owns now. live reads the owner
// from the API: a cache may be older than the deletion of the owner, and an object
// adopted for an owner that is gone would be collected with it.
func Take[T metav1.Object](ctx context.Context, owner metav1.Object, kind schema.GroupVersionKind, c Claims[T],
	live func(context.Context) (metav1.Object, error), patch func(ctx context.Context, o T, body []byte) error,
) ([]T, error) {
	owned := c.Owned
	for _, o := range c.Release {
		if err := patch(ctx, o, ReleasePatch(owner, o)); err != nil && !gone(err) {
			return nil, fmt.Errorf("release %s/%s: %w", o.GetNamespace(), o.GetName(), err)
		}
	}
	if len(c.Adopt) == 0 {
		return owned, nil
	}
	now, err := live(ctx)
	if apierrors.IsNotFound(err) || (err == nil && (now.GetUID() != owner.GetUID() || now.GetDeletionTimestamp() != nil)) {
		return owned, nil
	}
	if err != nil {
		return nil, err
	}
	for _, o := range c.Adopt {
		err := patch(ctx, o, AdoptPatch(owner, kind, o))
		if err != nil && !gone(err) {
			return nil, fmt.Errorf("adopt %s/%s: %w", o.GetNamespace(), o.GetName(), err)
		}
		if err == nil {
			owned = append(owned, o)
		}
	}
	return owned, nil
}

// gone says that a patch missed its object: it was deleted, or replaced by another
// of the same name, or has got another controller meanwhile.
func gone(err error) bool {
	return apierrors.IsNotFound(err) || apierrors.IsInvalid(err) || apierrors.IsConflict(err)
}
