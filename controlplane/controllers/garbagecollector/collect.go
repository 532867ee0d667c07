package garbagecollector

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

func isNotFound(err error) bool { return apierrors.IsNotFound(err) }

// attemptDelete looks at one object and does what its owners' state asks for.
func (c *Controller) attemptDelete(ctx context.Context, id types.UID) error {
	s, ok := c.snapshot(id)
	if !ok || !s.known {
		// A kind that is not served cannot be looked up, and an owner of such a kind
		// is given the benefit of the doubt.
		return nil
	}
	if s.virtual {
		return c.verify(ctx, s)
	}
	if s.deleting && !s.foreground {
		return nil
	}
	obj, err := c.live(ctx, s.kind, s.identity)
	if err != nil {
		return err
	}
	if obj == nil {
		c.apply(func() work { return c.graph.forget(id) })
		return nil
	}
	if s.foreground {
		return c.advance(ctx, s, obj)
	}
	if obj.GetDeletionTimestamp() != nil {
		return nil
	}
	return c.collect(ctx, s, obj)
}

// verify finds out whether an owner that was only named exists. If so its own
// watch will tell more; if not its dependents are looked at.
func (c *Controller) verify(ctx context.Context, s snapshot) error {
	obj, err := c.live(ctx, s.kind, s.identity)
	if err != nil || obj != nil {
		return err
	}
	c.apply(func() work {
		if n, ok := c.graph.nodes[s.uid]; !ok || !n.virtual {
			return work{}
		}
		return c.graph.forget(s.uid)
	})
	return nil
}

// advance moves a foreground deletion on: it ends when nothing blocks it.
func (c *Controller) advance(ctx context.Context, s snapshot, obj *metav1.PartialObjectMetadata) error {
	if len(s.blocking) == 0 {
		return c.dropFinalizer(ctx, s, obj, metav1.FinalizerDeleteDependents)
	}
	for _, id := range s.blocking {
		if d := s.dependents[id]; d != nil && !d.foreground {
			c.check.Add(id)
		}
	}
	return nil
}

// collect keeps, releases or deletes an object.
func (c *Controller) collect(ctx context.Context, s snapshot, obj *metav1.PartialObjectMetadata) error {
	owners := obj.GetOwnerReferences()
	var solidOwners, absentOwners, waitingOwners int
	gone := map[types.UID]bool{}
	for _, r := range owners {
		st, err := c.ownerState(ctx, s, r)
		if err != nil {
			return err
		}
		switch st {
		case solid:
			solidOwners++
		case waiting:
			waitingOwners++
			gone[r.UID] = true
		case unseen:
			absentOwners++
			gone[r.UID] = true
		}
	}
	switch decide(solidOwners, absentOwners, waitingOwners, len(s.dependents) > 0) {
	case keep:
		return nil
	case release:
		kept := slices.DeleteFunc(slices.Clone(owners), func(r metav1.OwnerReference) bool { return gone[r.UID] })
		return c.setOwners(ctx, s.kind, obj, kept)
	case removeForeground:
		if err := c.unblock(ctx, s, obj, owners); err != nil {
			return err
		}
		return c.delete(ctx, s, obj, metav1.DeletePropagationForeground)
	}
	return c.delete(ctx, s, obj, policyOf(obj))
}

// policyOf keeps to what an object's finalizers already say.
func policyOf(obj *metav1.PartialObjectMetadata) metav1.DeletionPropagation {
	switch {
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerOrphanDependents):
		return metav1.DeletePropagationOrphan
	case slices.Contains(obj.GetFinalizers(), metav1.FinalizerDeleteDependents):
		return metav1.DeletePropagationForeground
	}
	return metav1.DeletePropagationBackground
}

// ownerState classifies an owner; unseen means here that a live look found none.
func (c *Controller) ownerState(ctx context.Context, s snapshot, r metav1.OwnerReference) (state, error) {
	c.mu.Lock()
	st := c.graph.reference(&s.node, r)
	id := c.graph.ownerIdentity(&s.node, r)
	k, known := c.kinds[id.gk]
	c.mu.Unlock()
	if st != unseen {
		return st, nil
	}
	if !known {
		return solid, nil
	}
	owner, err := c.live(ctx, k, id)
	switch {
	case err != nil:
		return solid, err
	case owner == nil:
		return unseen, nil
	case owner.GetDeletionTimestamp() != nil && slices.Contains(owner.GetFinalizers(), metav1.FinalizerDeleteDependents):
		return waiting, nil
	}
	return solid, nil
}

// unblock keeps two objects that wait for each other from waiting forever: when a
// dependent of the object is itself deleted in the foreground, the object stops
// blocking its owners.
func (c *Controller) unblock(ctx context.Context, s snapshot, obj *metav1.PartialObjectMetadata, owners []metav1.OwnerReference) error {
	for _, d := range s.dependents {
		if !d.foreground {
			continue
		}
		freed := slices.Clone(owners)
		for i := range freed {
			freed[i].BlockOwnerDeletion = nil
		}
		if slices.EqualFunc(freed, owners, sameReference) {
			return nil
		}
		return c.setOwners(ctx, s.kind, obj, freed)
	}
	return nil
}

func (c *Controller) delete(ctx context.Context, s snapshot, obj *metav1.PartialObjectMetadata, policy metav1.DeletionPropagation) error {
	uid, version := obj.GetUID(), obj.GetResourceVersion()
	err := c.resource(s.kind, obj.GetNamespace()).Delete(ctx, obj.GetName(), metav1.DeleteOptions{
		PropagationPolicy: &policy,
		// Whoever gave the object an owner since it was read is not overrun.
		Preconditions: &metav1.Preconditions{UID: &uid, ResourceVersion: &version},
	})
	if err != nil && !isNotFound(err) {
		return fmt.Errorf("delete %s %s/%s: %w", s.gk, obj.GetNamespace(), obj.GetName(), err)
	}
	c.log.Info("deleted an object without owners", "kind", s.gk.Kind, "namespace", obj.GetNamespace(), "name", obj.GetName(), "policy", policy)
	return nil
}

// attemptOrphan cuts an object's dependents loose and lets it go.
func (c *Controller) attemptOrphan(ctx context.Context, id types.UID) error {
	s, ok := c.snapshot(id)
	if !ok || !s.known || !s.orphan {
		return nil
	}
	for _, d := range s.dependents {
		if err := c.cutLoose(ctx, d, id); err != nil {
			return err
		}
	}
	obj, err := c.live(ctx, s.kind, s.identity)
	if err != nil || obj == nil {
		return err
	}
	return c.dropFinalizer(ctx, s, obj, metav1.FinalizerOrphanDependents)
}

func (c *Controller) cutLoose(ctx context.Context, d *node, owner types.UID) error {
	k, ok := c.kindOf(d.gk)
	if !ok {
		return nil
	}
	obj, err := c.live(ctx, k, d.identity)
	if err != nil || obj == nil {
		return err
	}
	kept := slices.DeleteFunc(slices.Clone(obj.GetOwnerReferences()), func(r metav1.OwnerReference) bool { return r.UID == owner })
	if len(kept) == len(obj.GetOwnerReferences()) {
		return nil
	}
	return c.setOwners(ctx, k, obj, kept)
}

func (c *Controller) kindOf(gk schema.GroupKind) (kind, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.kinds[gk]
	return k, ok
}

func (c *Controller) setOwners(ctx context.Context, k kind, obj *metav1.PartialObjectMetadata, owners []metav1.OwnerReference) error {
	if owners == nil {
		owners = []metav1.OwnerReference{}
	}
	return c.patch(ctx, k, obj, map[string]any{"ownerReferences": owners})
}

func (c *Controller) dropFinalizer(ctx context.Context, s snapshot, obj *metav1.PartialObjectMetadata, name string) error {
	if !slices.Contains(obj.GetFinalizers(), name) {
		return nil
	}
	kept := slices.DeleteFunc(slices.Clone(obj.GetFinalizers()), func(f string) bool { return f == name })
	return c.patch(ctx, s.kind, obj, map[string]any{"finalizers": kept})
}

// patch changes metadata, on condition that nobody else has changed the object.
func (c *Controller) patch(ctx context.Context, k kind, obj *metav1.PartialObjectMetadata, changes map[string]any) error {
	changes["uid"], changes["resourceVersion"] = obj.GetUID(), obj.GetResourceVersion()
	body, err := json.Marshal(map[string]any{"metadata": changes})
	if err != nil {
		return fmt.Errorf("encode a patch: %w", err)
	}
	updated, err := c.resource(k, obj.GetNamespace()).Patch(ctx, obj.GetName(), types.MergePatchType, body, metav1.PatchOptions{FieldManager: "garbage-collector"})
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("patch %s %s/%s: %w", k.gvr.Resource, obj.GetNamespace(), obj.GetName(), err)
	}
	obj.SetResourceVersion(updated.GetResourceVersion())
	return nil
}
