package reconciler

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/history"
	"gitk8s.dev/gitk8s/reconciler/apply"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
	"gitk8s.dev/gitk8s/registry"
)

// prepared is a commit that could be deployed: rendered, pinned and planned.
type prepared struct {
	commit  gitsource.Commit
	objects []render.Object
	pins    []v1alpha1.ImagePin
	plan    plan.Plan
}

// deploy makes the observed commit the deployed one. Until everything about it
// has been checked, nothing that runs is touched.
func (w *work) deploy(ctx context.Context, trigger string) error {
	c := w.st.observed
	started := time.Now()
	if err := w.supersede(ctx, c.SHA); err != nil {
		return err
	}
	w.say(c.SHA, "commit %s %q", history.Short(c.SHA), c.Subject)
	p, err := w.prepare(ctx, c)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		w.refuse(c.SHA, trigger, started, err)
		return nil
	}
	rev, err := w.history.Record(ctx, w.app, v1alpha1.RevisionSpec{
		Commit: c.SHA, Author: c.Author, Subject: c.Subject, CommittedAt: metav1.NewTime(c.Time), Images: p.pins,
	}, unwrap(p.objects))
	if err != nil {
		return err
	}
	if l, err := w.location(ctx); err == nil {
		// A force-push and a repack must not lose what may be rolled back to.
		if err := w.cfg.Source.Keep(ctx, l, w.keptCommits(ctx)); err != nil {
			w.event(corev1.EventTypeWarning, "KeepFailed", "%v", err)
		}
	}
	return w.begin(ctx, rev, p.objects, p.plan, trigger, started)
}

func (w *work) keptCommits(ctx context.Context) []string {
	all, err := w.history.List(ctx, w.app.Namespace, w.app.Name)
	if err != nil {
		return nil
	}
	shas := make([]string, len(all))
	for i, r := range all {
		shas[i] = r.Spec.Commit
	}
	return shas
}

// begin applies a revision's objects. The status says so first: a daemon that is
// killed in between goes on from there.
func (w *work) begin(ctx context.Context, rev *v1alpha1.Revision, objects []render.Object, p plan.Plan, trigger string, started time.Time) error {
	if err := w.history.Started(ctx, rev, trigger, started); err != nil {
		return err
	}
	failures := int32(0)
	if ls := w.status().LastSync; ls != nil && ls.Commit == rev.Spec.Commit {
		failures = ls.Failures
	}
	w.status().DeployedCommit, w.status().Revision = rev.Spec.Commit, rev.Name
	w.status().LastSync = &v1alpha1.SyncResult{
		Trigger: trigger, Commit: rev.Spec.Commit, StartedAt: metav1.NewTime(started), Outcome: v1alpha1.OutcomeDeploying, Failures: failures,
	}
	if op := w.status().LastOperation; op != nil && !op.Done {
		op.Commit = rev.Spec.Commit
	}
	w.setDeployed(rev.Name, objects)
	w.st.began = started
	clear(w.st.reported)
	clear(w.st.applied)
	clear(w.st.replaced)
	if err := w.save(ctx); err != nil {
		return err
	}
	w.say(rev.Spec.Commit, "plan: %s", p.Summary())
	for _, a := range p.Actions {
		if a.Verb != plan.Unchanged {
			w.say(rev.Spec.Commit, "  %-9s %s", a.Verb, a.ID)
		}
	}
	w.event(corev1.EventTypeNormal, "Deploying", "%s: commit %s: %s", trigger, history.Short(rev.Spec.Commit), p.Summary())
	// An error here is retried: the next step finds what is left to apply as drift.
	return w.carryOut(ctx, p, rev.Spec)
}

// carryOut applies and prunes in the order of the plan.
func (w *work) carryOut(ctx context.Context, p plan.Plan, rev v1alpha1.RevisionSpec) error {
	stamp := w.stamp(rev)
	for _, a := range p.Actions {
		switch a.Verb {
		case plan.Create, plan.Configure, plan.Replace:
			now, err := w.applyOne(ctx, a, apply.WithReplicas(stamp(a.Desired.Unstructured), a.Desired, a.Live))
			if err != nil {
				return fmt.Errorf("%s %s: %w", a.Verb, a.ID, err)
			}
			w.st.applied[a.ID] = written{now.GetUID(), now.GetGeneration()}
		case plan.Prune:
			if err := w.cluster.Delete(ctx, a.Live); err != nil {
				return fmt.Errorf("prune %s: %w", a.ID, err)
			}
		}
	}
	return nil
}

func (w *work) stamp(rev v1alpha1.RevisionSpec) func(*unstructured.Unstructured) *unstructured.Unstructured {
	cause := strings.TrimSpace(history.Short(rev.Commit) + " " + rev.Subject)
	return func(u *unstructured.Unstructured) *unstructured.Unstructured {
		return apply.Stamp(u, w.owner, rev.Commit, cause)
	}
}

// prepare does everything for a deploy that changes nothing.
func (w *work) prepare(ctx context.Context, c gitsource.Commit) (prepared, error) {
	l, err := w.location(ctx)
	if err != nil {
		return prepared{}, err
	}
	reading, done := context.WithCancel(ctx) // the files are open until then
	defer done()
	files, err := w.cfg.Source.Files(reading, l, c.SHA)
	if err != nil {
		return prepared{}, err
	}
	objects, err := render.Render(ctx, files, render.Options{
		Path: w.app.Spec.Source.Path, Namespace: w.app.Namespace, Namespaced: w.cluster.Namespaced,
	})
	if err != nil {
		return prepared{}, err
	}
	w.keepJobPins(objects)
	p := prepared{commit: c, objects: objects}
	if w.app.Spec.Images.Resolve != v1alpha1.ResolveOff {
		if p.pins, err = pinImages(ctx, w.cfg.Images, objects); err != nil {
			return prepared{}, err
		}
	}
	p.plan, err = w.plan(ctx, objects, v1alpha1.RevisionSpec{Commit: c.SHA, Subject: c.Subject}, plan.Replaceable)
	return p, err
}

// plan compares objects with the cluster. Those that cannot be changed may be
// replaced if replace says so.
func (w *work) plan(ctx context.Context, objects []render.Object, rev v1alpha1.RevisionSpec, replace func(*unstructured.Unstructured) bool) (plan.Plan, error) {
	candidates, err := w.cluster.Compare(ctx, w.owner, objects, w.stamp(rev), replace)
	if err != nil {
		return plan.Plan{}, err
	}
	prune := w.app.Spec.Sync.Prune == nil || *w.app.Spec.Sync.Prune
	p, conflicts := plan.Make(w.owner, candidates, w.cluster.Owned(w.owner), prune)
	return p, errors.Join(conflicts...)
}

// supersede ends a deploy under way that a newer commit overtakes.
func (w *work) supersede(ctx context.Context, by string) error {
	ls := w.status().LastSync
	if ls == nil || ls.FinishedAt != nil || ls.Commit == by {
		return nil
	}
	return w.end(ctx, v1alpha1.OutcomeSuperseded, "superseded by commit "+history.Short(by), false)
}

// refuse notes that a commit can't be deployed. What runs, runs on.
func (w *work) refuse(commit, trigger string, started time.Time, why error) {
	now := metav1.Now()
	ls := &v1alpha1.SyncResult{
		Trigger: trigger, Commit: commit, StartedAt: metav1.NewTime(started), FinishedAt: &now,
		Outcome: v1alpha1.OutcomeFailed, Message: firstLines(why.Error(), 10), Failures: 1,
	}
	if last := w.status().LastSync; last != nil && last.Commit == commit {
		ls.Failures = last.Failures + 1
	}
	note := ""
	if mayPass(why) {
		at := metav1.NewTime(now.Add(backoff(ls.Failures)))
		ls.RetryAt = &at
		note = fmt.Sprintf("; next try in %s", backoff(ls.Failures))
	}
	w.status().LastSync = ls
	w.event(corev1.EventTypeWarning, "DeployFailed", "commit %s: %s%s", history.Short(commit), ls.Message, note)
	for line := range strings.Lines(ls.Message) {
		w.say(commit, "error: %s", strings.TrimSpace(line))
	}
	w.last = append(w.last, Progress{Key: w.key, Commit: commit, Line: "not deployed; what ran before runs on" + note, Done: true})
	w.endOperation(false, ls.Message)
}

// mayPass says whether a failure can go away without a new commit.
func mayPass(err error) bool {
	var fault *render.Error
	var conflict *plan.ConflictError
	switch {
	case registry.IsNotFound(err), registry.IsUnavailable(err), registry.IsUnauthorized(err):
		return true
	case errors.As(err, &conflict):
		return true // the other application may let go of it
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsMethodNotSupported(err):
		return false
	case errors.As(err, &fault):
		var status apierrors.APIStatus
		return errors.As(err, &status)
	}
	return true
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(s, "\n", n+1)
	if len(lines) > n {
		lines[n] = "…"
	}
	return strings.Join(lines, "\n")
}

func unwrap(objects []render.Object) []*unstructured.Unstructured {
	out := make([]*unstructured.Unstructured, len(objects))
	for i, o := range objects {
		out[i] = o.Unstructured
	}
	return out
}

// succeed ends a deploy that became Ready.
func (w *work) succeed(ctx context.Context) error {
	if err := w.end(ctx, v1alpha1.OutcomeSucceeded, fmt.Sprintf("Ready after %s", w.took().Round(10*time.Millisecond)), true); err != nil {
		return err
	}
	w.status().ReadyCommit = w.status().DeployedCommit
	limit := int32(50)
	if l := w.app.Spec.History.Limit; l != nil {
		limit = *l
	}
	return w.history.Expire(ctx, w.app.Namespace, w.app.Name, int(limit), w.status().ReadyCommit)
}

// took is how long the deploy under way has taken so far.
func (w *work) took() time.Duration {
	if !w.st.began.IsZero() {
		return time.Since(w.st.began)
	}
	return time.Since(w.status().LastSync.StartedAt.Time)
}

// end notes the outcome of the deploy under way in the status, the Revision, the
// events, and to whoever listens.
func (w *work) end(ctx context.Context, outcome v1alpha1.Outcome, message string, ok bool) error {
	ls := w.status().LastSync
	now := time.Now()
	all, err := w.history.List(ctx, w.app.Namespace, w.app.Name)
	if err != nil {
		return err
	}
	for _, rev := range all {
		if rev.Spec.Commit == ls.Commit && rev.Status.Outcome == v1alpha1.OutcomeDeploying {
			if err := w.history.Ended(ctx, rev, outcome, message, w.took()); err != nil {
				return err
			}
		}
	}
	finished := metav1.NewTime(now)
	ls.FinishedAt, ls.Outcome, ls.Message = &finished, outcome, message
	if ok {
		ls.Failures = 0
	}
	kind := corev1.EventTypeNormal
	if !ok {
		kind = corev1.EventTypeWarning
	}
	w.event(kind, string(outcome), "commit %s: %s", history.Short(ls.Commit), message)
	w.last = append(w.last, Progress{Key: w.key, Commit: ls.Commit, Line: message, Done: true, Succeeded: ok})
	w.endOperation(ok, message)
	return nil
}

// fail ends a deploy that did not become Ready and, if wanted, brings back what ran
// before it.
func (w *work) fail(ctx context.Context, message string) error {
	failed := w.status().LastSync.Commit
	auto := w.app.Spec.Rollout.AutoRollback == nil || *w.app.Spec.Rollout.AutoRollback
	// A rollback that fails is not rolled back again: that could go on for ever.
	if t := w.status().LastSync.Trigger; t == triggerRollback || t == triggerAutoRollback {
		auto = false
	}
	var back *v1alpha1.Revision
	if auto {
		all, err := w.history.List(ctx, w.app.Namespace, w.app.Name)
		if err != nil {
			return err
		}
		if back, err = history.Fallback(all, failed, w.status().ReadyCommit); err != nil && !errors.Is(err, history.ErrNoRevision) {
			return err
		}
	}
	if back == nil {
		return w.end(ctx, v1alpha1.OutcomeFailed, message, false)
	}
	message = fmt.Sprintf("%s; rolling back to %s", message, history.Short(back.Spec.Commit))
	w.say(failed, "failed: %s", message)
	if err := w.end(ctx, v1alpha1.OutcomeRolledBack, message, false); err != nil {
		return err
	}
	w.status().HeldAt = &v1alpha1.Hold{
		Commit: failed, Time: metav1.Now(), Reason: v1alpha1.HeldByAutoRollback,
		Message: fmt.Sprintf("commit %s did not become Ready: %s", history.Short(failed), message),
	}
	return w.restore(ctx, back, triggerAutoRollback)
}
