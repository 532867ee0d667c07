package controller

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Claims is what a controller may do with the objects in its namespace.
type Claims[T metav1.Object] struct {
	// Owned already have the owner as their controller and match its selector.
	Owned []T
	// Adopt match the selector and have no controller.
	Adopt []T
	// Release have the owner as controller and no longer match.
	Release []T
}

// Claim sorts candidates by the rules of Kubernetes: an object is adopted only if
// it has no controller, matches the selector and neither side is being deleted;
// it is released when it stops matching.
func Claim[T metav1.Object](owner metav1.Object, selector labels.Selector, candidates []T) Claims[T] {
	var c Claims[T]
	for _, o := range candidates {
		ref := metav1.GetControllerOf(o)
		matches := selector.Matches(labels.Set(o.GetLabels()))
		switch {
		case ref != nil && ref.UID == owner.GetUID():
			if matches || owner.GetDeletionTimestamp() != nil || o.GetDeletionTimestamp() != nil {
				c.Owned = append(c.Owned, o)
			} else {
				c.Release = append(c.Release, o)
			}
		case ref == nil && matches && owner.GetDeletionTimestamp() == nil && o.GetDeletionTimestamp() == nil:
			c.Adopt = append(c.Adopt, o)
		}
	}
	return c
}

// AdoptPatch is the strategic merge patch that makes owner the controller of o.
// It fails on the server if o was replaced by another object of the same name.
func AdoptPatch(owner metav1.Object, kind schema.GroupVersionKind, o metav1.Object) []byte {
	return mustJSON(map[string]any{"metadata": map[string]any{
		"uid":             o.GetUID(),
		"ownerReferences": []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)},
	}})
}

// ReleasePatch is the strategic merge patch that removes owner from o's owners.
func ReleasePatch(owner, o metav1.Object) []byte {
	return mustJSON(map[string]any{"metadata": map[string]any{
		"uid":             o.GetUID(),
		"ownerReferences": []any{map[string]any{"$patch": "delete", "uid": owner.GetUID()}},
	}})
}

func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("marshal patch: %v", err)) // maps of plain values always marshal
	}
	return b
}

// SplitKey takes a queue key apart. Keys are made by Key, so they are well-formed.
func SplitKey(key string) (namespace, name string) {
	for i := range len(key) {
		if key[i] == '/' {
			return key[:i], key[i+1:]
		}
	}
	return "", key
}
