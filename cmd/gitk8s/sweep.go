package main

import (
	"context"
	"log/slog"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/dynamic"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/registry"
)

// How often the embedded registry is swept, and how old something that nothing
// refers to must be: a push uploads its layers before the manifest that names them.
const (
	sweepEvery  = time.Hour
	sweepMinAge = 2 * time.Hour
)

// sweepRegistry removes from the embedded registry what neither a tag nor a kept
// Revision refers to, until ctx ends.
func sweepRegistry(ctx context.Context, reg *registry.Server, d dynamic.Interface) {
	t := time.NewTicker(sweepEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		inUse, err := imagesInUse(ctx, d)
		if err != nil {
			slog.Warn("the registry is not swept: its users could not be listed", "error", err)
			continue
		}
		n, bytes, err := reg.Sweep(inUse, sweepMinAge)
		if err != nil {
			slog.Warn("sweeping the registry", "error", err)
		} else if n > 0 {
			slog.Info("swept the registry", "files", n, "bytes", bytes)
		}
	}
}

// imagesInUse are the digests that a rollback may need.
func imagesInUse(ctx context.Context, d dynamic.Interface) (map[string]bool, error) {
	list, err := d.Resource(v1alpha1.SchemeGroupVersion.WithResource("revisions")).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	inUse := map[string]bool{}
	for i := range list.Items {
		r, err := decode[v1alpha1.Revision](&list.Items[i])
		if err != nil {
			return nil, err
		}
		for _, image := range r.Spec.Images {
			inUse[image.Digest] = true
		}
	}
	return inUse, nil
}
