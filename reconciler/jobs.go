package reconciler

import (
	"context"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gitk8s.dev/gitk8s/reconciler/apply"
	"gitk8s.dev/gitk8s/reconciler/health"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// A Job differs from what else is deployed in that it runs once, and that what it
// runs cannot be changed.

// keepJobPins gives Jobs that exist the digests they run: a tag that has moved is no
// reason to refuse a Job whose manifest is the same.
func (r *Reconciler) keepJobPins(objects []render.Object) {
	for _, o := range objects {
		if live := r.cluster.Cached(o.Unstructured); o.GetKind() == "Job" && live != nil {
			KeepPins(o.Unstructured, live)
		}
	}
}

// jobsToo says that an object that cannot be changed may be replaced: if it is
// marked so, and any Job when an earlier revision is brought back or drift undone,
// which must not end half-way.
func jobsToo(u *unstructured.Unstructured) bool {
	return plan.Replaceable(u) || u.GetKind() == "Job"
}

// applyOne makes an object as it should be, or makes it anew.
func (w *work) applyOne(ctx context.Context, a plan.Action, stamped *unstructured.Unstructured) (*unstructured.Unstructured, error) {
	if a.Verb == plan.Replace {
		if err := w.cluster.Delete(ctx, a.Live); err != nil {
			return nil, err
		}
		w.st.replaced[a.ID] = a.Live.GetUID()
	}
	return w.cluster.Apply(ctx, stamped, false)
}

// hasRun says of a deployed Job that does not exist, or not for long, that it has run
// and removed itself after its time to live, and how it ended. Self-heal does not make it again,
// it would run for ever; the next deploy does. Of a deploy that is over it is not
// known any more whether the Job was deleted by hand: then, too, it is left to the
// next.
func (w *work) hasRun(o render.Object) (health.Result, bool) {
	if !apply.HasTTL(o.Unstructured) {
		return health.Result{}, false
	}
	ended := w.cluster.Ended(o.Unstructured)
	if live := w.cluster.Cached(o.Unstructured); live != nil {
		if live.GetDeletionTimestamp() == nil || !apply.Finished(live) {
			return health.Result{}, false
		}
		ended = live
	}
	if ended != nil {
		u := ended.DeepCopy()
		u.SetDeletionTimestamp(nil)
		return health.Of(u), true
	}
	ls := w.status().LastSync
	return health.Result{Status: health.Current, Message: "has run and is gone"}, ls != nil && ls.FinishedAt != nil
}
