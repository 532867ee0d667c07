package reconciler

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/history"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// Triggers of a deploy that are not a look at the remote.
const (
	triggerRollback     = "rollback"
	triggerAutoRollback = "autorollback"
	triggerManual       = "manual"
)

// operation takes up what the command line asked for. Its answer is in the status
// before the request is removed, so that neither is lost.
func (w *work) operation(ctx context.Context) (force bool, err error) {
	op := w.app.Operation
	if op == nil {
		return false, nil
	}
	if last := w.status().LastOperation; last == nil || last.ID != op.ID {
		w.status().LastOperation = &v1alpha1.OperationResult{ID: op.ID}
		force, err = w.take(ctx, op)
		if err != nil {
			return false, err
		}
		if err := w.save(ctx); err != nil {
			return false, err
		}
	}
	patch := fmt.Appendf(nil, `{"metadata":{"uid":%q},"operation":null}`, w.app.UID)
	_, err = w.cfg.Dynamic.Resource(applications).Namespace(w.app.Namespace).Patch(ctx, w.app.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return false, fmt.Errorf("remove the operation that was taken up: %w", err)
	}
	w.app.Operation = nil
	return force, nil
}

func (w *work) take(ctx context.Context, op *v1alpha1.Operation) (force bool, err error) {
	switch {
	case op.Sync != nil:
		trigger := op.Sync.Trigger
		if trigger == "" {
			trigger = triggerManual
		}
		w.mu.Lock()
		w.st.asked = trigger
		w.mu.Unlock()
		return op.Sync.Force, nil
	case op.Rollback != nil:
		return false, w.rollback(ctx, op.Rollback)
	case op.Hold != nil:
		w.hold(v1alpha1.HeldByUser, "held by hand: "+orNone(op.Hold.Reason))
		w.endOperation(true, "held; `gitk8s resume` lets commits through again")
	case op.Resume != nil:
		// Commits that failed are tried again: that is what resuming asks for.
		w.status().HeldAt = nil
		w.mu.Lock()
		w.st.asked = triggerManual
		w.mu.Unlock()
		return true, nil
	}
	return false, nil
}

func orNone(s string) string {
	if s == "" {
		return "no reason given"
	}
	return s
}

// hold keeps everything up to the newest commit known from being deployed.
func (w *work) hold(reason v1alpha1.HoldReason, message string) {
	commit := w.status().ObservedCommit
	if commit == "" {
		commit = w.status().DeployedCommit
	}
	w.status().HeldAt = &v1alpha1.Hold{Commit: commit, Time: metav1.Now(), Reason: reason, Message: message}
}

func (w *work) rollback(ctx context.Context, op *v1alpha1.RollbackOperation) error {
	all, err := w.history.List(ctx, w.app.Namespace, w.app.Name)
	if err != nil {
		return err
	}
	rev, err := history.Choose(op.ToRevision, all, w.status().DeployedCommit)
	if err != nil {
		w.endOperation(false, err.Error())
		return nil
	}
	reason := v1alpha1.HeldByRollback
	if op.Hold {
		reason = v1alpha1.HeldByUser
	}
	if err := w.supersede(ctx, rev.Spec.Commit); err != nil {
		return err
	}
	// supersede ends the operation that asked for the deploy it ends; this is a new one.
	w.status().LastOperation = &v1alpha1.OperationResult{ID: w.app.Operation.ID}
	w.hold(reason, fmt.Sprintf("rolled back to revision %d (%s)", rev.Spec.Number, history.Short(rev.Spec.Commit)))
	return w.restore(ctx, rev, triggerRollback)
}

// restore deploys an earlier revision from its stored objects: neither the
// repository nor the image tags need to exist any more.
func (w *work) restore(ctx context.Context, rev *v1alpha1.Revision, trigger string) error {
	started := time.Now()
	objects, err := w.history.Objects(ctx, rev)
	if err != nil {
		w.endOperation(false, err.Error())
		w.event(corev1.EventTypeWarning, "RollbackFailed", "%v", err)
		return nil
	}
	wrapped := wrap(objects)
	p, err := w.plan(ctx, wrapped, rev.Spec, jobsToo)
	if err != nil {
		w.refuse(rev.Spec.Commit, trigger, started, err)
		return nil
	}
	return w.begin(ctx, rev, wrapped, p, trigger, started)
}

// endOperation answers the operation under way, if there is one.
func (w *work) endOperation(ok bool, message string) {
	if op := w.status().LastOperation; op != nil && !op.Done {
		op.Done, op.Succeeded, op.Message = true, ok, message
	}
}

// settleOperation answers an operation that turned out to have nothing to do.
func (w *work) settleOperation(s Snapshot) {
	op := w.status().LastOperation
	if op == nil || op.Done {
		return
	}
	if ls := w.status().LastSync; ls != nil && ls.FinishedAt == nil {
		return // its deploy is under way
	}
	switch {
	case w.st.sourceErr != nil:
		w.endOperation(false, w.st.sourceErr.Error())
	case w.status().HeldAt != nil && s.Observed != w.status().DeployedCommit:
		w.endOperation(false, fmt.Sprintf("held: %s; `gitk8s resume` deploys %s", w.status().HeldAt.Message, shortOrNone(s.Observed)))
	case w.status().LastSync != nil && w.status().LastSync.Outcome == v1alpha1.OutcomeFailed && w.status().LastSync.Commit == s.Observed:
		w.endOperation(false, w.status().LastSync.Message)
	case s.Health.Failed || s.Health.Ready < s.Health.Total:
		w.endOperation(false, s.Health.Message)
	default:
		w.endOperation(true, fmt.Sprintf("commit %s is deployed", shortOrNone(w.status().DeployedCommit)))
	}
}

// healPause is the least time between two corrections of the same Application,
// doubled while another writer fights back.
const healPause = time.Second

// heal undoes what others changed of the deployed objects, and finishes a deploy
// that was interrupted while applying.
func (w *work) heal(ctx context.Context) error {
	w.mu.Lock()
	drifted := w.st.drifted
	w.st.drifted = false
	w.mu.Unlock()
	underWay := w.status().LastSync != nil && w.status().LastSync.FinishedAt == nil
	wanted := w.app.Spec.Sync.SelfHeal == nil || *w.app.Spec.Sync.SelfHeal
	if !drifted || len(w.st.deployed) == 0 || w.status().Revision == "" || (!wanted && !underWay) {
		return nil
	}
	again := func() {
		w.mu.Lock()
		w.st.drifted = true
		w.mu.Unlock()
	}
	pause := min(healPause<<min(w.st.heals, 9), 5*time.Minute)
	if since := time.Since(w.st.healed); w.st.heals > 0 && since < pause {
		again()
		w.queue.AddAfter(w.key, pause-since)
		return nil
	}
	rev, err := w.deployedSpec(ctx)
	if err != nil || rev == nil {
		again()
		return err
	}
	deployed := slices.DeleteFunc(slices.Clone(w.st.deployed), func(o render.Object) bool {
		_, ok := w.hasRun(o)
		return ok
	})
	p, err := w.plan(ctx, deployed, *rev, jobsToo)
	if err != nil {
		again()
		return fmt.Errorf("compare with revision %s: %w", w.status().Revision, err)
	}
	if !p.Changes() {
		if time.Since(w.st.healed) > 5*time.Minute {
			w.st.heals = 0
		}
		return nil
	}
	if err := w.carryOut(ctx, p, *rev); err != nil {
		again()
		return err
	}
	w.st.healed = time.Now()
	w.st.heals++
	if !underWay {
		for _, a := range p.Actions {
			if a.Verb != plan.Unchanged {
				w.event(corev1.EventTypeNormal, "DriftCorrected", "%s %s: it was changed outside of Git", a.Verb, a.ID)
			}
		}
	}
	return nil
}

// deployedSpec is the spec of the deployed Revision; nil if it was deleted.
func (w *work) deployedSpec(ctx context.Context) (*v1alpha1.RevisionSpec, error) {
	all, err := w.history.List(ctx, w.app.Namespace, w.app.Name)
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if r.Name == w.status().Revision {
			return &r.Spec, nil
		}
	}
	return nil, nil
}
