package history

import (
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// Revisions reads and writes the ControllerRevisions of workloads.
type Revisions struct {
	client kubernetes.Interface
	lister appslisters.ControllerRevisionLister
}

// NewRevisions returns Revisions that read from a cache and write to the API.
func NewRevisions(client kubernetes.Interface, lister appslisters.ControllerRevisionLister) *Revisions {
	return &Revisions{client: client, lister: lister}
}

// Owned claims the revisions of an owner by selector and owner reference and
// returns them; live reads the owner from the API.
func (r *Revisions) Owned(ctx context.Context, o Owner, live func(context.Context) (metav1.Object, error)) ([]*appsv1.ControllerRevision, error) {
	all, err := r.lister.ControllerRevisions(o.GetNamespace()).List(labels.Everything())
	if err != nil {
		return nil, err
	}
	return controller.Take(ctx, o.Object, o.Kind, controller.Claim(o.Object, o.Selector, all), live,
		func(ctx context.Context, rev *appsv1.ControllerRevision, body []byte) error {
			_, err := r.client.AppsV1().ControllerRevisions(rev.Namespace).Patch(ctx, rev.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{})
			return err
		})
}

// Ensure makes the owner's template the newest revision. It returns that revision
// and the collision count, which grows when a name is taken by something else.
func (r *Revisions) Ensure(ctx context.Context, o Owner, owned []*appsv1.ControllerRevision) (*appsv1.ControllerRevision, int32, error) {
	api := r.client.AppsV1().ControllerRevisions(o.GetNamespace())
	step := Next(o, owned)
	if step.Renumber {
		rev, err := api.Update(ctx, step.Revision, metav1.UpdateOptions{})
		if err != nil {
			return nil, 0, fmt.Errorf("renumber controller revision %s/%s: %w", o.GetNamespace(), step.Revision.Name, err)
		}
		return rev, o.Collisions, nil
	}
	if !step.Create {
		return step.Revision, o.Collisions, nil
	}
	for {
		rev, err := api.Create(ctx, step.Revision, metav1.CreateOptions{})
		if err == nil {
			return rev, o.Collisions, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, 0, fmt.Errorf("create controller revision %s/%s: %w", o.GetNamespace(), step.Revision.Name, err)
		}
		live, err := api.Get(ctx, step.Revision.Name, metav1.GetOptions{})
		if err != nil {
			return nil, 0, err
		}
		if metav1.IsControlledBy(live, o) {
			if again := Next(o, append(slices.Clone(owned), live)); again.Revision.Name == live.Name && !again.Create {
				return live, o.Collisions, nil // made by an earlier look that the cache has not shown yet
			}
		}
		o.Collisions++
		step = Step{Revision: newRevision(o, step.Revision.Revision), Create: true}
	}
}

// Truncate deletes the revisions that are not in use beyond the owner's limit.
func (r *Revisions) Truncate(ctx context.Context, o Owner, owned []*appsv1.ControllerRevision, inUse func(*appsv1.ControllerRevision) bool) error {
	for _, rev := range Excess(o, owned, inUse) {
		err := r.client.AppsV1().ControllerRevisions(rev.Namespace).Delete(ctx, rev.Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(rev.UID)),
		})
		if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
			return fmt.Errorf("delete controller revision %s/%s: %w", rev.Namespace, rev.Name, err)
		}
	}
	return nil
}
