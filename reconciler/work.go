package reconciler

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/history"
	"gitk8s.dev/gitk8s/reconciler/health"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// fetchTimeout bounds one look at a remote.
const fetchTimeout = 2 * time.Minute

// work is one step of one Application.
type work struct {
	*Reconciler
	key   string
	owner plan.Owner
	app   *v1alpha1.Application
	was   *v1alpha1.ApplicationStatus // as read
	st    *state
	// last are the last lines about a commit, sent when the status says so too.
	last []Progress
}

func (w *work) status() *v1alpha1.ApplicationStatus { return &w.app.Status }

// step takes up an operation, looks at the remote if that is due, and does what
// Decide says. The status is written whatever happens.
func (w *work) step(ctx context.Context) error {
	force, opErr := w.operation(ctx)
	if opErr != nil {
		return opErr
	}
	looked, next := w.look(ctx)
	snapshot, err := w.snapshot(ctx, force)
	if err != nil {
		return err
	}
	now := time.Now()
	d := Decide(snapshot, now)
	if d.LiftHold {
		w.event(corev1.EventTypeNormal, "HoldLifted", "commit %s is newer than the one held back", history.Short(w.st.observed.SHA))
		w.status().HeldAt = nil
	}
	if h := w.status().HeldAt; d.Step == Deploy && h != nil && h.Reason != v1alpha1.HeldByUser {
		w.status().HeldAt = nil // deployed by force
	}
	switch d.Step {
	case Deploy:
		err = w.deploy(ctx, snapshot.Trigger)
	case Succeed:
		err = w.succeed(ctx)
	case Fail:
		err = w.fail(ctx, d.Message)
	case Await, Rest:
		err = w.heal(ctx)
		w.settleOperation(snapshot)
		if looked && d.Step == Rest {
			w.answerLook(snapshot)
		}
	}
	if err != nil {
		return errors.Join(err, w.save(ctx))
	}
	if d.Recheck > 0 {
		w.queue.AddAfter(w.key, d.Recheck)
	}
	if !next.IsZero() {
		w.queue.AddAfter(w.key, max(time.Until(next), time.Millisecond))
	}
	if err := w.save(ctx); err != nil {
		return err
	}
	for _, p := range w.last {
		w.feed.send(p)
	}
	return nil
}

// location is where the Application's commits come from.
func (w *work) location(ctx context.Context) (gitsource.Location, error) {
	s := w.app.Spec.Source
	l := gitsource.Location{URL: s.RepoURL, Key: w.key, Ref: s.Ref}
	if s.SecretRef == nil {
		return l, nil
	}
	u, err := w.cfg.Dynamic.Resource(corev1.SchemeGroupVersion.WithResource("secrets")).Namespace(w.app.Namespace).Get(ctx, s.SecretRef.Name, metav1.GetOptions{})
	if err != nil {
		return l, fmt.Errorf("credentials of the repository: %w", err)
	}
	data, err := secretData(u)
	if err != nil {
		return l, err
	}
	l.Auth = gitsource.AuthFrom(data)
	return l, nil
}

// look fetches the remote if something asks for it or it is due, and returns when
// it is due next.
func (w *work) look(ctx context.Context) (looked bool, next time.Time) {
	schedule := gitsource.Schedule{Cron: w.app.Spec.Sync.Schedule, TimeZone: w.app.Spec.Sync.TimeZone}
	if i := w.app.Spec.Sync.Interval; i != nil {
		schedule.Interval = i.Duration
	}
	if w.app.Spec.Source.RepoURL == "" {
		schedule.Interval = 0 // every change of the embedded repository is a push that we see
	}
	w.mu.Lock()
	asked := w.st.asked
	w.st.asked = ""
	w.mu.Unlock()
	due, trigger, err := schedule.Next(w.st.looked)
	if w.st.looked.IsZero() && asked == "" {
		asked = "start"
	}
	if asked == "" && err == nil && !due.IsZero() && !time.Now().Before(due) {
		asked = trigger
	}
	if asked != "" {
		w.fetch(ctx, asked)
	}
	next, _, err = schedule.Next(w.st.looked)
	if err != nil {
		w.st.sourceErr = err
	}
	return asked != "", next
}

// answerLook tells listeners why a look at the remote deployed nothing.
func (w *work) answerLook(s Snapshot) {
	p := Progress{Key: w.key, Commit: s.Observed, Done: true}
	switch {
	case w.st.sourceErr != nil:
		p.Line = w.st.sourceErr.Error()
	case s.Observed != "" && s.Observed == w.status().DeployedCommit:
		p.Line, p.Succeeded = "commit "+history.Short(s.Observed)+" is deployed already", true
	case w.status().HeldAt != nil:
		p.Line = "held: " + w.status().HeldAt.Message
	case w.status().LastSync != nil:
		p.Line = w.status().LastSync.Message
	}
	w.last = append(w.last, p)
}

func (w *work) fetch(ctx context.Context, trigger string) {
	w.st.looked = time.Now()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	l, err := w.location(ctx)
	var c gitsource.Commit
	if err == nil {
		c, err = w.cfg.Source.Fetch(ctx, l)
	}
	w.st.sourceErr = err
	if err != nil {
		if errors.Is(err, gitsource.ErrEmpty) && w.app.Spec.Source.RepoURL == "" {
			return // waiting for its first push is no fault
		}
		w.event(corev1.EventTypeWarning, "FetchFailed", "%v", err)
		return
	}
	if c.SHA != w.status().ObservedCommit {
		w.event(corev1.EventTypeNormal, "NewCommit", "%s: commit %s %q", trigger, history.Short(c.SHA), c.Subject)
	}
	w.st.observed = c
	w.status().ObservedCommit = c.SHA
	w.st.lastTrigger = trigger
}

func (w *work) snapshot(ctx context.Context, force bool) (Snapshot, error) {
	s := Snapshot{App: w.app, Observed: w.st.observed.SHA, Trigger: w.st.lastTrigger, Force: force}
	if h := w.status().HeldAt; h != nil && s.Observed != "" {
		if s.Observed == h.Commit {
			s.HeldBack = true
		} else if l, err := w.location(ctx); err == nil {
			old, err := w.cfg.Source.IsAncestor(ctx, l, s.Observed, h.Commit)
			if err != nil {
				return s, fmt.Errorf("compare commit %s with the held one: %w", history.Short(s.Observed), err)
			}
			s.HeldBack = old
		}
	}
	if err := w.loadDeployed(ctx); err != nil {
		return s, err
	}
	s.Health = w.health()
	w.report()
	return s, nil
}

// loadDeployed reads the objects of the deployed revision back, after a start.
func (w *work) loadDeployed(ctx context.Context) error {
	if w.status().Revision == "" || w.st.deployedFor == w.status().Revision {
		return nil
	}
	all, err := w.history.List(ctx, w.app.Namespace, w.app.Name)
	if err != nil {
		return err
	}
	for _, rev := range all {
		if rev.Name != w.status().Revision {
			continue
		}
		objects, err := w.history.Objects(ctx, rev)
		if err != nil {
			return err
		}
		w.setDeployed(rev.Name, wrap(objects))
		return nil
	}
	return nil // deleted by hand: what runs, runs on
}

func (w *work) setDeployed(revision string, objects []render.Object) {
	w.st.deployed, w.st.deployedFor = objects, revision
	w.mu.Lock()
	w.st.drifted = true
	w.mu.Unlock()
}

func wrap(objects []*unstructured.Unstructured) []render.Object {
	out := make([]render.Object, len(objects))
	for i, u := range objects {
		out[i] = render.Object{Unstructured: u}
	}
	return out
}

// health sums up the deployed objects.
func (w *work) health() Health {
	h := Health{Total: len(w.st.deployed)}
	worst := health.Current
	for _, o := range w.st.deployed {
		id := render.IDOf(o.Unstructured)
		res := w.statusOf(o)
		if res.Status == health.Current {
			h.Ready++
		}
		if res.Status == health.Failed {
			h.Failed = true
		}
		if worse(res.Status, worst) {
			worst = res.Status
			h.Message = fmt.Sprintf("%s: %s", id, res.Message)
		}
	}
	return h
}

// statusOf is how far one deployed object has come.
func (w *work) statusOf(o render.Object) health.Result {
	live := w.cluster.Cached(o.Unstructured)
	if result, ok := w.hasRun(o); ok {
		return result
	}
	if live == nil {
		return health.Result{Status: health.InProgress, Message: "does not exist"}
	}
	if w.st.replaced[render.IDOf(o.Unstructured)] == live.GetUID() {
		return health.Result{Status: health.InProgress, Message: "is being replaced"}
	}
	if v, ok := w.st.applied[render.IDOf(o.Unstructured)]; ok && v.uid == live.GetUID() && live.GetGeneration() < v.generation {
		return health.Result{Status: health.InProgress, Message: "has just been changed"}
	}
	return health.Of(live)
}

// report tells listeners what moved in the deploy under way.
func (w *work) report() {
	ls := w.status().LastSync
	if ls == nil || ls.FinishedAt != nil {
		return
	}
	for _, o := range w.st.deployed {
		id, res := render.IDOf(o.Unstructured), w.statusOf(o)
		if line := fmt.Sprintf("%s: %s", id, res.Message); res.Total > 0 && w.st.reported[id] != line {
			w.st.reported[id] = line
			w.say(ls.Commit, "%s", line)
		}
	}
}

func (w *work) say(commit, format string, args ...any) {
	w.feed.send(Progress{Key: w.key, Commit: commit, Line: fmt.Sprintf(format, args...)})
}

func (w *work) event(kind, reason, format string, args ...any) {
	w.cfg.Events.Eventf(w.app, kind, reason, format, args...)
}

// save writes the status if it changed.
func (w *work) save(ctx context.Context) error {
	st := w.status()
	h := w.health()
	st.ObservedGeneration = w.app.Generation
	st.Objects = fmt.Sprintf("%d/%d", h.Ready, h.Total)
	st.Phase, st.Message = phaseOf(st, h)
	st.Conditions = conditionsOf(st, h, w.st.sourceErr, w.app.Generation, time.Now())
	if reflect.DeepEqual(st, w.was) {
		return nil
	}
	body, err := statusPatch(w.app, w.was, st)
	if err != nil {
		return err
	}
	_, err = w.cfg.Dynamic.Resource(applications).Namespace(w.app.Namespace).Patch(ctx, w.app.Name, types.MergePatchType, body, metav1.PatchOptions{}, "status")
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("status of application %s: %w", w.key, err)
	}
	w.was = st.DeepCopy()
	return nil
}

// statusPatch is the merge patch from one status to another. What is no longer
// there becomes null: a merge patch keeps what it does not name.
func statusPatch(app *v1alpha1.Application, was, is *v1alpha1.ApplicationStatus) ([]byte, error) {
	type object struct {
		Metadata map[string]types.UID        `json:"metadata"`
		Status   *v1alpha1.ApplicationStatus `json:"status"`
	}
	before, err := json.Marshal(object{Status: was})
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(object{map[string]types.UID{"uid": app.UID}, is})
	if err != nil {
		return nil, err
	}
	return jsonpatch.CreateMergePatch(before, after)
}

func secretData(u *unstructured.Unstructured) (map[string][]byte, error) {
	b, err := json.Marshal(u.Object["data"])
	if err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	if err := json.Unmarshal(b, &out); err != nil {
		return nil, fmt.Errorf("secret %s/%s: %w", u.GetNamespace(), u.GetName(), err)
	}
	return out, nil
}
