package reconciler

import (
	"context"
	"fmt"
	"io/fs"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// Preview says what deploying the files of a commit would do, without doing it:
// it renders, validates against the API and looks for objects of other
// Applications. Image tags are left as they are.
func (r *Reconciler) Preview(ctx context.Context, key, commit string, files fs.FS) (plan.Plan, error) {
	app, err := r.get(key)
	if err != nil {
		return plan.Plan{}, err
	}
	if app == nil {
		return plan.Plan{}, fmt.Errorf("application %s does not exist", key)
	}
	objects, err := render.Render(ctx, files, render.Options{
		Path: app.Spec.Source.Path, Namespace: app.Namespace, Namespaced: r.cluster.Namespaced,
	})
	if err != nil {
		return plan.Plan{}, err
	}
	r.keepJobPins(objects)
	w := &work{Reconciler: r, key: key, app: app, owner: plan.Owner{Namespace: app.Namespace, Name: app.Name}}
	return w.plan(ctx, objects, v1alpha1.RevisionSpec{Commit: commit}, plan.Replaceable)
}
