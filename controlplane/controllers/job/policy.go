package job

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// onlyReplaceFailed says that a pod which is stopping still holds its place
// (KEP-3939).
func onlyReplaceFailed(spec *batchv1.JobSpec) bool {
	p := spec.PodReplacementPolicy
	return p != nil && *p == batchv1.Failed || spec.PodFailurePolicy != nil
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// abandoned says that nobody will tell how a pod has ended: it was deleted before
// it had a node, or its node has let go of it.
func abandoned(p *corev1.Pod) bool {
	return p.DeletionTimestamp != nil && !ended(p) &&
		(p.Spec.NodeName == "" || p.DeletionGracePeriodSeconds != nil && *p.DeletionGracePeriodSeconds == 0)
}

// failed says whether a pod is taken to have failed. One that is being deleted is,
// unless its Job waits for the end of it.
func failed(p *corev1.Pod, spec *batchv1.JobSpec) bool {
	if p.Status.Phase == corev1.PodFailed || abandoned(p) {
		return true
	}
	return !onlyReplaceFailed(spec) && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

// verdict of a pod failure policy about one pod (KEP-3329).
type verdict struct {
	// action is that of the rule that matched, or "".
	action  batchv1.PodFailurePolicyAction
	message string
}

// counts says whether the failure counts towards the limits.
func (v verdict) counts() bool { return v.action != batchv1.PodFailurePolicyActionIgnore }

// judgePod finds the first rule that fits a pod that has failed.
func judgePod(policy *batchv1.PodFailurePolicy, p *corev1.Pod) verdict {
	if policy == nil {
		return verdict{}
	}
	for i, r := range policy.Rules {
		if r.OnExitCodes != nil {
			if c := exitMatches(r.OnExitCodes, p); c != nil {
				return verdict{r.Action, fmt.Sprintf("Container %s for pod %s/%s failed with exit code %d matching %s rule at index %d",
					c.Name, p.Namespace, p.Name, c.State.Terminated.ExitCode, r.Action, i)}
			}
			continue
		}
		for _, pattern := range r.OnPodConditions {
			c := controller.PodCondition(p, pattern.Type)
			if c != nil && c.Status == cmp.Or(pattern.Status, corev1.ConditionTrue) {
				return verdict{r.Action, fmt.Sprintf("Pod %s/%s has condition %s matching %s rule at index %d", p.Namespace, p.Name, c.Type, r.Action, i)}
			}
		}
	}
	return verdict{}
}

// exitMatches returns the first container whose exit code fits; a success never
// does.
func exitMatches(r *batchv1.PodFailurePolicyOnExitCodesRequirement, p *corev1.Pod) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{p.Status.ContainerStatuses, p.Status.InitContainerStatuses} {
		for i := range list {
			c := &list[i]
			if r.ContainerName != nil && *r.ContainerName != c.Name || c.State.Terminated == nil || c.State.Terminated.ExitCode == 0 {
				continue
			}
			in := slices.Contains(r.Values, c.State.Terminated.ExitCode)
			if in == (r.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn) {
				return c
			}
		}
	}
	return nil
}

// enough says which rule of a success policy is met (KEP-3998), and -1 if none is.
func enough(policy *batchv1.SuccessPolicy, succeeded indexes, completions int) int {
	if policy == nil {
		return -1
	}
	return slices.IndexFunc(policy.Rules, func(r batchv1.SuccessPolicyRule) bool {
		have, want := succeeded.total(), 0
		if r.SucceededIndexes != nil {
			of := parseIndexes(*r.SucceededIndexes, completions)
			have, want = succeeded.common(of), of.total()
		}
		if r.SucceededCount != nil {
			want = int(*r.SucceededCount)
		}
		return have >= want
	})
}

// The back-off of pods that fail: "an exponential back-off delay (10s, 20s, 40s …)
// capped at six minutes" (page "Jobs", section "Pod backoff failure policy").
const (
	firstBackOff   = 10 * time.Second
	longestBackOff = 6 * time.Minute
)

func backOff(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	d := firstBackOff
	for range failures - 1 {
		if d *= 2; d >= longestBackOff {
			return longestBackOff
		}
	}
	return d
}

// finishedAt is when a pod ended, as well as it is known.
func finishedAt(p *corev1.Pod) time.Time {
	var at time.Time
	for _, list := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for i := range list {
			if t := list[i].State.Terminated; t != nil && t.FinishedAt.After(at) {
				at = t.FinishedAt.Time
			}
		}
	}
	switch c := controller.PodCondition(p, corev1.PodReady); {
	case !at.IsZero():
	case c != nil && !c.LastTransitionTime.IsZero():
		at = c.LastTransitionTime.Time
	case p.DeletionTimestamp != nil:
		at = p.DeletionTimestamp.Time
	default:
		at = p.CreationTimestamp.Time
	}
	return at
}

// number reads a count from an annotation.
func number(p *corev1.Pod, annotation string) int {
	n, err := strconv.Atoi(p.Annotations[annotation])
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// history is how often an index has failed, up to a pod that is to be replaced
// (KEP-3850). The newest pod of an index carries it on.
type history struct{ failures, ignored int }

// after is the history of the pod that replaces p.
func after(p *corev1.Pod, policy *batchv1.PodFailurePolicy) history {
	h := history{number(p, batchv1.JobIndexFailureCountAnnotation), number(p, batchv1.JobIndexIgnoredFailureCountAnnotation)}
	if judgePod(policy, p).counts() {
		h.failures++
	} else {
		h.ignored++
	}
	return h
}
