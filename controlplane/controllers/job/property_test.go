package job

import (
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// cluster plays the API server and the workers: enough of them to run a Job to its
// end without a server.
type cluster struct {
	job  *batchv1.Job
	pods map[types.UID]*corev1.Pod
	now  time.Time
	uid  int
	// unseen are pods that the controller's cache does not show yet.
	unseen map[types.UID]bool
	// known is what the last decision gave to the next one.
	known Failures
	// released are the tracked pods that ended, by how they count.
	released map[types.UID]string
	index    map[types.UID]int
	resizes  bool
	removed  bool
}

// list returns the pods in the order in which they were made.
func (c *cluster) list() []*corev1.Pod {
	var out []*corev1.Pod
	for i := range c.uid {
		if p := c.pods[types.UID(strconv.Itoa(i+1))]; p != nil {
			out = append(out, p)
		}
	}
	return out
}

func (c *cluster) snapshot() Snapshot {
	s := Snapshot{Job: c.job.DeepCopy(), Failures: c.known}
	for _, p := range c.list() {
		if c.unseen[p.UID] {
			s.Behind = true
			continue
		}
		s.Pods = append(s.Pods, p.DeepCopy())
	}
	return s
}

// untrack takes the finalizer from a pod and lets it go if it was deleted.
func (c *cluster) untrack(uid types.UID) {
	if p := c.pods[uid]; p != nil {
		p.Finalizers = nil
		c.gone(p)
	}
}

func (c *cluster) gone(p *corev1.Pod) {
	if p.DeletionTimestamp != nil && len(p.Finalizers) == 0 && (ended(p) || abandoned(p)) {
		delete(c.pods, p.UID)
	}
}

func (c *cluster) delete(uid types.UID) {
	p := c.pods[uid]
	if p == nil || p.DeletionTimestamp != nil {
		return
	}
	p.DeletionTimestamp = &metav1.Time{Time: c.now}
	c.gone(p)
}

// release checks that a pod is recorded before it is let go, and remembers it.
func (c *cluster) release(t *rapid.T, p *corev1.Pod) {
	u := c.job.Status.UncountedTerminatedPods
	i := indexOf(p)
	switch {
	case slices.Contains(u.Succeeded, p.UID):
		c.released[p.UID] = "succeeded"
	case slices.Contains(u.Failed, p.UID):
		c.released[p.UID] = "failed"
	case p.Status.Phase == corev1.PodSucceeded && isIndexed(&c.job.Spec):
		done := parseIndexes(c.job.Status.CompletedIndexes, 1<<30)
		broken := parseIndexes(text(c.job.Status.FailedIndexes), 1<<30)
		if i < int(*c.job.Spec.Completions) && !done.has(i) && !broken.has(i) {
			t.Fatalf("index %d succeeded and is lost: %s", i, c.job.Status.CompletedIndexes)
		}
	case c.released[p.UID] != "":
	case !judgePod(c.job.Spec.PodFailurePolicy, p).counts():
	default:
		t.Fatalf("pod %s, %s, is let go and counts nowhere: %+v", p.UID, p.Status.Phase, c.job.Status)
	}
	c.untrack(p.UID)
}

// failures counts how often an index has failed.
func (c *cluster) failures(index int) (n int) {
	for uid, i := range c.index {
		p := c.pods[uid]
		if i != index {
			continue
		}
		if c.released[uid] == "failed" || p != nil && tracked(p) && failed(p, &c.job.Spec) && judgePod(c.job.Spec.PodFailurePolicy, p).counts() {
			n++
		}
	}
	return n
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// apply checks a decision and carries it out, up to where the controller is killed.
func (c *cluster) apply(t *rapid.T, d Decision, steps int) {
	step := func() bool { steps--; return steps >= 0 }
	c.check(t, d)
	c.known = d.Failures
	if !step() {
		return
	}
	c.job.Status = d.Status
	for _, p := range d.Release {
		if !step() {
			return
		}
		c.release(t, p)
	}
	c.removed = c.removed || len(d.Remove) > 0
	for _, p := range slices.Concat(d.Remove, d.Stop) {
		if !step() {
			return
		}
		if slices.Contains(d.Remove, p) {
			c.untrack(p.UID)
			if !step() {
				return
			}
		}
		c.delete(p.UID)
	}
	for _, w := range d.Create {
		if !step() {
			return
		}
		p := newPod(c.job, w)
		c.uid++
		p.UID = types.UID(strconv.Itoa(c.uid))
		p.Name = p.GenerateName + strconv.Itoa(c.uid)
		p.CreationTimestamp = metav1.NewTime(c.now)
		p.Status.Phase = corev1.PodPending
		// What was taken out forgets what its pod carried on.
		if want := c.failures(w.Index); c.job.Spec.BackoffLimitPerIndex != nil && !c.removed && !c.resizes && number(p, batchv1.JobIndexFailureCountAnnotation) != want {
			t.Fatalf("index %d has failed %d times, its new pod says %v", w.Index, want, p.Annotations)
		}
		c.pods[p.UID], c.index[p.UID], c.unseen[p.UID] = p, w.Index, true
	}
	alive := 0
	for _, p := range c.pods {
		if !ended(p) && (p.DeletionTimestamp == nil || onlyReplaceFailed(&c.job.Spec) && !abandoned(p)) {
			alive++
		}
	}
	if len(d.Create) > 0 && alive > int(*c.job.Spec.Parallelism) {
		t.Fatalf("%d pods run, with parallelism %d", alive, *c.job.Spec.Parallelism)
	}
}

func (c *cluster) check(t *rapid.T, d Decision) {
	was, is := &c.job.Status, &d.Status
	if Finished(c.job) && len(d.Create)+len(d.Remove)+len(d.Stop) > 0 {
		t.Fatal("a finished Job goes on")
	}
	if i := slices.IndexFunc(c.list(), func(p *corev1.Pod) bool { return !ended(p) }); !Finished(c.job) && Finished(&batchv1.Job{Status: *is}) && i >= 0 {
		t.Fatalf("the Job is finished and pod %s runs", c.list()[i].UID)
	}
	if is.Failed < was.Failed || is.Succeeded < was.Succeeded && !c.resizes {
		t.Fatalf("counts go back: %+v after %+v", is, was)
	}
	if n := len(is.UncountedTerminatedPods.Failed) + len(is.UncountedTerminatedPods.Succeeded); n > maxUncounted {
		t.Fatalf("%d uncounted pods in the status", n)
	}
	if d.Recheck < 0 {
		t.Fatalf("asks for a look %s ago", d.Recheck)
	}
	if c.job.Spec.Suspend != nil && *c.job.Spec.Suspend && len(d.Create) > 0 {
		t.Fatal("creates pods while suspended")
	}
	seen := map[int]bool{}
	for _, p := range c.pods {
		if !ended(p) && p.DeletionTimestamp == nil && !slices.ContainsFunc(d.Remove, func(r *corev1.Pod) bool { return r.UID == p.UID }) {
			seen[indexOf(p)] = true
		}
	}
	done, broken := parseIndexes(is.CompletedIndexes, 1<<30), parseIndexes(text(is.FailedIndexes), 1<<30)
	if done.common(broken) > 0 {
		t.Fatalf("indexes both succeeded and failed: %s and %s", done, broken)
	}
	for _, w := range d.Create {
		if w.Index < 0 {
			continue
		}
		if seen[w.Index] || done.has(w.Index) || broken.has(w.Index) || w.Index >= int(*c.job.Spec.Completions) {
			t.Fatalf("index %d is run again", w.Index)
		}
		seen[w.Index] = true
	}
}

func (c *cluster) exit(p *corev1.Pod, code int32) {
	if ended(p) {
		return
	}
	p.Spec.NodeName = "n"
	p.Status.Phase = corev1.PodSucceeded
	if code != 0 {
		p.Status.Phase = corev1.PodFailed
	}
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, FinishedAt: metav1.NewTime(c.now),
	}}}}
	c.gone(p)
}

// happen is one thing that workers, or people, do to a pod.
func (c *cluster) happen(t *rapid.T, mayFail bool) {
	pods := c.list()
	if len(pods) == 0 {
		return
	}
	p := pods[rapid.IntRange(0, len(pods)-1).Draw(t, "pod")]
	switch what := rapid.IntRange(0, 5).Draw(t, "event"); {
	case p.DeletionTimestamp != nil:
		c.exit(p, 143)
	case what == 0 && mayFail:
		c.exit(p, rapid.SampledFrom([]int32{1, 1, 1, 2, 3}).Draw(t, "code"))
	case what == 1 && mayFail:
		c.delete(p.UID)
	case what <= 3:
		if p.Status.Phase == corev1.PodPending {
			p.Spec.NodeName, p.Status.Phase = "n", corev1.PodRunning
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(c.now)}}
		}
	default:
		c.exit(p, 0)
	}
}

// settle does all that workers would do in time, until the Job is finished and all
// finalizers are gone.
func (c *cluster) settle(t *rapid.T) {
	off := false
	c.job.Spec.Suspend = &off
	for range 400 {
		clear(c.unseen)
		d := Decide(c.snapshot(), c.now)
		c.apply(t, d, 1<<30)
		if Finished(c.job) && !slices.ContainsFunc(c.list(), tracked) {
			return
		}
		for _, p := range c.list() {
			if p.DeletionTimestamp != nil {
				c.exit(p, 143)
			} else {
				c.exit(p, 0)
			}
		}
		c.now = c.now.Add(max(d.Recheck, time.Second))
	}
	t.Fatalf("the Job does not end: %+v, %d pods", c.job.Status, len(c.pods))
}

func draw(t *rapid.T) *batchv1.Job {
	n := func(name string, from, to int) *int32 {
		v := int32(rapid.IntRange(from, to).Draw(t, name))
		return &v
	}
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: "j", Namespace: "d", UID: "job"}}
	job.Spec.Parallelism, job.Spec.BackoffLimit = n("parallelism", 1, 5), n("backoffLimit", 0, 8)
	job.Spec.Template.Spec.RestartPolicy = corev1.RestartPolicyNever
	replacement := rapid.SampledFrom([]batchv1.PodReplacementPolicy{batchv1.Failed, batchv1.TerminatingOrFailed}).Draw(t, "replacement")
	job.Spec.PodReplacementPolicy = &replacement
	mode := rapid.SampledFrom([]batchv1.CompletionMode{batchv1.NonIndexedCompletion, batchv1.IndexedCompletion}).Draw(t, "mode")
	job.Spec.CompletionMode = &mode
	if mode == batchv1.IndexedCompletion || rapid.Bool().Draw(t, "counted") {
		job.Spec.Completions = n("completions", 0, 9)
	}
	if mode == batchv1.IndexedCompletion {
		if rapid.Bool().Draw(t, "perIndex") {
			job.Spec.BackoffLimitPerIndex = n("backoffLimitPerIndex", 0, 2)
			*job.Spec.BackoffLimit = 1 << 30
			if rapid.Bool().Draw(t, "maxFailed") {
				job.Spec.MaxFailedIndexes = n("maxFailedIndexes", 0, 3)
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "successPolicy") == 0 {
			job.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededCount: n("enough", 1, 5)}}}
		}
	}
	if rapid.Bool().Draw(t, "failurePolicy") {
		job.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
			{Action: batchv1.PodFailurePolicyActionIgnore, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{2}}},
			{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{3}}},
		}}
	}
	return job
}

// TestRuns: whatever the Job, the failures, the order of events and where the
// controller is killed, no more pods run than may, every pod is counted once, and
// the Job ends.
func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &cluster{job: draw(t), pods: map[types.UID]*corev1.Pod{}, now: start, released: map[types.UID]string{}, index: map[types.UID]int{}, unseen: map[types.UID]bool{}}
		mayFail := rapid.Bool().Draw(t, "failures")
		for range rapid.IntRange(0, 80).Draw(t, "events") {
			switch rapid.IntRange(0, 12).Draw(t, "what") {
			case 0, 1, 2, 3:
				steps := 1 << 30
				if rapid.IntRange(0, 3).Draw(t, "killed") == 0 {
					steps = rapid.IntRange(0, 6).Draw(t, "after")
				}
				if rapid.IntRange(0, 3).Draw(t, "late") > 0 {
					clear(c.unseen)
				}
				c.apply(t, Decide(c.snapshot(), c.now), steps)
			case 4:
				suspend := rapid.Bool().Draw(t, "suspend")
				c.job.Spec.Suspend = &suspend
			case 5:
				// After its end a Job no longer looks at its size.
				if isIndexed(&c.job.Spec) && !holds(&c.job.Status, batchv1.JobSuccessCriteriaMet) {
					size := int32(rapid.IntRange(1, 9).Draw(t, "size"))
					c.job.Spec.Completions, c.job.Spec.Parallelism, c.resizes = &size, &size, true
				}
			default:
				c.happen(t, mayFail)
			}
			c.now = c.now.Add(time.Duration(rapid.IntRange(0, 20).Draw(t, "pause")) * time.Second)
		}
		c.settle(t)
		c.verify(t, mayFail)
	})
}

// verify compares the status of a finished Job with what has happened.
func (c *cluster) verify(t *rapid.T, mayFail bool) {
	st := &c.job.Status
	count := map[string]int32{}
	for _, how := range c.released {
		count[how]++
	}
	if st.Failed != count["failed"] {
		t.Fatalf("%d failed, the status says %d", count["failed"], st.Failed)
	}
	if !isIndexed(&c.job.Spec) && st.Succeeded != count["succeeded"] {
		t.Fatalf("%d succeeded, the status says %d", count["succeeded"], st.Succeeded)
	}
	if isIndexed(&c.job.Spec) && int(st.Succeeded) != parseIndexes(st.CompletedIndexes, 1<<30).total() {
		t.Fatalf("%d succeeded, of indexes %s", st.Succeeded, st.CompletedIndexes)
	}
	if st.Active != 0 || *st.Terminating != 0 || len(st.UncountedTerminatedPods.Failed)+len(st.UncountedTerminatedPods.Succeeded) > 0 {
		t.Fatalf("finished and not at rest: %+v", st)
	}
	complete := holds(st, batchv1.JobComplete)
	if complete == holds(st, batchv1.JobFailed) {
		t.Fatalf("%+v", st.Conditions)
	}
	if !mayFail && !complete {
		t.Fatalf("failed without a failure: %+v", st.Conditions)
	}
	if complete && c.job.Spec.SuccessPolicy == nil && c.job.Spec.Completions != nil && st.Succeeded < *c.job.Spec.Completions {
		t.Fatalf("complete with %d of %d", st.Succeeded, *c.job.Spec.Completions)
	}
}

// TestIndexes: whatever the set, it is what was put into it, and its text means it.
func TestIndexes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s indexes
		want := map[int]bool{}
		for _, i := range rapid.SliceOf(rapid.IntRange(0, 30)).Draw(t, "indexes") {
			s = s.with(i)
			want[i] = true
		}
		if s.total() != len(want) {
			t.Fatalf("%v has %d, want %d", s, s.total(), len(want))
		}
		for i := range 31 {
			if s.has(i) != want[i] {
				t.Fatalf("%v has %d: %t", s, i, s.has(i))
			}
		}
		if back := parseIndexes(s.String(), 31); fmt.Sprint(back) != fmt.Sprint(s) {
			t.Fatalf("%q is read as %v, not %v", s.String(), back, s)
		}
		var o indexes
		both := 0
		for _, i := range rapid.SliceOf(rapid.IntRange(0, 30)).Draw(t, "others") {
			if !o.has(i) && want[i] {
				both++
			}
			o = o.with(i)
		}
		if s.common(o) != both {
			t.Fatalf("%v and %v have %d in common, want %d", s, o, s.common(o), both)
		}
	})
}
