package reconciler

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// Resolver turns an image reference into the digest it means now, with the
// credentials of the pull secrets in a namespace.
type Resolver interface {
	Resolve(ctx context.Context, namespace string, pullSecrets []string, reference string) (digest string, err error)
}

// podSpecs are where the kinds that run pods keep their pod specs.
var podSpecs = map[string][]string{
	"Pod": {"spec"}, "Deployment": {"spec", "template", "spec"}, "ReplicaSet": {"spec", "template", "spec"},
	"StatefulSet": {"spec", "template", "spec"}, "DaemonSet": {"spec", "template", "spec"},
	"ReplicationController": {"spec", "template", "spec"}, "Job": {"spec", "template", "spec"},
	"CronJob": {"spec", "jobTemplate", "spec", "template", "spec"},
}

// containers calls f for each container of an object's pods.
func containers(u *unstructured.Unstructured, f func(container map[string]any)) {
	path, ok := podSpecs[u.GetKind()]
	if !ok {
		return
	}
	for _, list := range []string{"initContainers", "containers"} {
		// NestedFieldNoCopy: what f sets must reach the object.
		v, found, err := unstructured.NestedFieldNoCopy(u.Object, append(slices.Clone(path), list)...)
		items, isList := v.([]any)
		if !found || err != nil || !isList {
			continue
		}
		for _, item := range items {
			if c, ok := item.(map[string]any); ok {
				f(c)
			}
		}
	}
}

func pullSecrets(u *unstructured.Unstructured) []string {
	var names []string
	list, _, _ := unstructured.NestedSlice(u.Object, append(slices.Clone(podSpecs[u.GetKind()]), "imagePullSecrets")...)
	for _, item := range list {
		if m, ok := item.(map[string]any); ok {
			if name, ok := m["name"].(string); ok {
				names = append(names, name)
			}
		}
	}
	return names
}

// pinImages replaces, in place, every tag by "tag@digest" and returns what was
// pinned, in the order of first use. A reference that carries a digest stays.
func pinImages(ctx context.Context, r Resolver, objects []render.Object) ([]v1alpha1.ImagePin, error) {
	type use struct {
		namespace, ref string
		secrets        []string
		by             render.Object
		digest         string
		err            error
	}
	var uses []*use
	index := map[string]*use{}
	key := func(namespace, ref string, secrets []string) string {
		return namespace + "\x00" + ref + "\x00" + strings.Join(secrets, ",")
	}
	for _, o := range objects {
		secrets := pullSecrets(o.Unstructured)
		containers(o.Unstructured, func(c map[string]any) {
			ref, _ := c["image"].(string)
			k := key(o.GetNamespace(), ref, secrets)
			if ref == "" || strings.Contains(ref, "@") || index[k] != nil {
				return
			}
			index[k] = &use{namespace: o.GetNamespace(), ref: ref, secrets: secrets, by: o}
			uses = append(uses, index[k])
		})
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, u := range uses {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if u.digest, u.err = r.Resolve(ctx, u.namespace, u.secrets, u.ref); u.err != nil {
				u.err = fmt.Errorf("%s: %s: %w", u.by.Source(), render.IDOf(u.by.Unstructured), u.err)
			}
		})
	}
	wg.Wait()
	var pins []v1alpha1.ImagePin
	var errs []error
	for _, u := range uses {
		if u.err != nil {
			errs = append(errs, u.err)
			continue
		}
		pin := v1alpha1.ImagePin{Reference: u.ref, Digest: u.digest}
		if !slices.Contains(pins, pin) {
			pins = append(pins, pin)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, o := range objects {
		secrets := pullSecrets(o.Unstructured)
		containers(o.Unstructured, func(c map[string]any) {
			ref, _ := c["image"].(string)
			if u := index[key(o.GetNamespace(), ref, secrets)]; u != nil {
				c["image"] = ref + "@" + u.digest
			}
		})
	}
	return pins, nil
}

// KeepPins gives the containers of a manifest the digests of the live object,
// where both have the same tag. It is for comparing manifests with a cluster
// without asking any registry.
func KeepPins(manifest, live *unstructured.Unstructured) {
	pins := map[string]string{}
	containers(live, func(c map[string]any) {
		image, _ := c["image"].(string)
		if tag, _, ok := strings.Cut(image, "@"); ok {
			pins[tag] = image
		}
	})
	containers(manifest, func(c map[string]any) {
		image, _ := c["image"].(string)
		if pinned, ok := pins[image]; ok {
			c["image"] = pinned
		}
	})
}
