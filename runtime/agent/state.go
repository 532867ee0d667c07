package agent

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/container"
)

// sandboxPhase is how far the part of a pod that its containers share has come:
// network, volumes and the sandbox itself.
type sandboxPhase string

const (
	sandboxNone     sandboxPhase = ""
	sandboxMaking   sandboxPhase = "making"
	sandboxReady    sandboxPhase = "ready"
	sandboxLost     sandboxPhase = "lost"
	sandboxRemoving sandboxPhase = "removing"
	sandboxRemoved  sandboxPhase = "removed"
)

// podState is all that is known of one pod. The pod's worker owns it.
type podState struct {
	pod *v1.Pod
	// gone: the object is not in the API any more.
	gone bool
	// draining: the agent is stopping all its pods.
	draining bool
	// failure, when set, ends the pod for a reason of the node's.
	failure *podFailure
	// terminal is the phase that the pod's containers have decided, or "".
	terminal v1.PodPhase
	// deleting: the DELETE that ends a deletion is on its way, or done.
	deleting bool

	sandbox      sandboxPhase
	sandboxWait  waiting
	sandboxRetry retry
	// networkReady gates pods with a network of their own.
	networkReady bool
	ips          []netip.Addr
	startTime    time.Time
	// endStart is when the pod began to end: its grace counts from then.
	endStart time.Time
	// admitted: the node has begun with the pod, which it refuses no more.
	admitted bool
	// pressure is what the node is short of, shuttingDown that its machine goes down.
	pressure     []v1.NodeConditionType
	shuttingDown bool
	// graceLimit, if set, is the most time that is left for the pod to end.
	graceLimit *time.Duration
	// mainStarted: a regular container has run in this sandbox, so that init
	// containers do not run again.
	mainStarted bool

	// ctrs holds the init containers in order, then the regular ones, then the
	// ephemeral ones as they were added.
	ctrs []*ctr
}

// podFailure is a reason of the node's to end a pod.
type podFailure struct {
	Reason, Message string
	// Rejected: the pod was never run.
	Rejected bool
}

type ctrKind int

const (
	initCtr ctrKind = iota
	sidecarCtr
	mainCtr
	// ephemeralCtr was added to the running pod to look into it (KEP-277).
	ephemeralCtr
)

// ctr is one container of a pod over all its runs.
type ctr struct {
	spec *v1.Container
	kind ctrKind
	// target is the container whose processes an ephemeral one sees, or "".
	target string
	// cur is the present or latest run, prev the one before it.
	cur, prev *instance
	// busy: a start or a stop is under way.
	starting, stopping bool
	// stopBy is when the stop under way will kill.
	stopBy time.Time
	// wait says why no run is under way, for the status.
	wait waiting
	// startRetry delays the next attempt to start after a failed one that made no
	// run: a missing image or ConfigMap.
	startRetry retry
	// crash delays the next run after one that ended.
	crash retry
	// done: an init container that has succeeded in this sandbox.
	done bool
	// started and ready are what probes say of cur.
	started, ready bool
	// kill asks for the end of cur because a probe failed.
	kill *killOrder
}

type killOrder struct {
	message string
	grace   time.Duration
}

// waiting is the reason why something does not run yet.
type waiting struct {
	Reason, Message string
	Since           time.Time
}

// instance is one run of a container.
type instance struct {
	Attempt    int
	Running    bool
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int
	Reason     string
	Message    string
	Image      string
	ImageID    string
	ID         string
	// User is who it began as, where that is known.
	User *container.User
	// Removed: its layer and log are gone, to make room.
	Removed bool
}

// instanceID names the run of a container in its sandbox.
func instanceID(name string, attempt int) string { return name + "-" + strconv.Itoa(attempt) }

// parseInstanceID is the inverse of instanceID.
func parseInstanceID(id string) (name string, attempt int, ok bool) {
	i := strings.LastIndexByte(id, '-')
	if i <= 0 {
		return "", 0, false
	}
	n, err := strconv.Atoi(id[i+1:])
	return id[:i], n, err == nil && n >= 0
}

func newPodState(pod *v1.Pod) *podState {
	s := &podState{pod: pod}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		kind := initCtr
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			kind = sidecarCtr
		}
		s.ctrs = append(s.ctrs, &ctr{spec: c, kind: kind})
	}
	for i := range pod.Spec.Containers {
		s.ctrs = append(s.ctrs, &ctr{spec: &pod.Spec.Containers[i], kind: mainCtr})
	}
	s.addEphemeral()
	return s
}

func (s *podState) addEphemeral() {
	for i := range s.pod.Spec.EphemeralContainers {
		e := &s.pod.Spec.EphemeralContainers[i]
		if s.ctr(e.Name) == nil {
			s.ctrs = append(s.ctrs, &ctr{spec: (*v1.Container)(&e.EphemeralContainerCommon), kind: ephemeralCtr, target: e.TargetContainerName})
		}
	}
}

// podContainers are all containers of a pod, ephemeral ones included.
func podContainers(pod *v1.Pod) []*v1.Container {
	var out []*v1.Container
	for i := range pod.Spec.InitContainers {
		out = append(out, &pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		out = append(out, &pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		out = append(out, (*v1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	return out
}

// setPod takes a newer version of the object. Containers keep their identity by
// name: a pod's containers cannot be removed, only ephemeral ones be added, and the
// image of the others may change.
func (s *podState) setPod(pod *v1.Pod) {
	s.pod = pod
	s.addEphemeral()
	for _, c := range s.ctrs {
		for i := range pod.Spec.InitContainers {
			if (c.kind == initCtr || c.kind == sidecarCtr) && pod.Spec.InitContainers[i].Name == c.spec.Name {
				c.spec = &pod.Spec.InitContainers[i]
			}
		}
		for i := range pod.Spec.Containers {
			if c.kind == mainCtr && pod.Spec.Containers[i].Name == c.spec.Name {
				c.spec = &pod.Spec.Containers[i]
			}
		}
	}
}

func (s *podState) ctr(name string) *ctr {
	for _, c := range s.ctrs {
		if c.spec.Name == name {
			return c
		}
	}
	return nil
}

// hasRun says that a container of the pod has run, maybe under an earlier agent: it
// is not refused any more.
func (s *podState) hasRun() bool {
	return slices.ContainsFunc(s.ctrs, func(c *ctr) bool { return c.cur != nil })
}

// ending says that the pod's containers are to stop.
func (s *podState) ending() bool {
	return s.pod.DeletionTimestamp != nil || s.gone || s.draining || s.failure != nil || s.terminal != ""
}

// grace is how long the pod may take to end, counted from endStart.
func (s *podState) grace() time.Duration {
	if own := s.ownGrace(); s.graceLimit == nil || own < *s.graceLimit {
		return own
	}
	return *s.graceLimit
}

func (s *podState) ownGrace() time.Duration {
	secs := int64(30)
	switch {
	case s.failure != nil && s.failure.Reason == reasonEvicted:
		return evictionGrace
	case s.pod.DeletionGracePeriodSeconds != nil && s.pod.DeletionTimestamp != nil:
		secs = *s.pod.DeletionGracePeriodSeconds
	case s.pod.Spec.TerminationGracePeriodSeconds != nil:
		secs = *s.pod.Spec.TerminationGracePeriodSeconds
	}
	return time.Duration(max(secs, 0)) * time.Second
}

func (c *ctr) running() bool { return c.cur != nil && c.cur.Running }
func (c *ctr) exited() bool  { return c.cur != nil && !c.cur.Running }

// restarts says whether a run that ended with code is followed by another.
func (c *ctr) restarts(policy v1.RestartPolicy, code int) bool {
	switch c.kind {
	case sidecarCtr:
		return true
	case ephemeralCtr:
		return false
	}
	for i := range c.spec.RestartPolicyRules {
		if matchesExit(&c.spec.RestartPolicyRules[i], code) {
			return true
		}
	}
	if c.spec.RestartPolicy != nil {
		policy = v1.RestartPolicy(*c.spec.RestartPolicy)
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return code != 0
	}
	return c.kind == mainCtr || code != 0
}

// matchesExit says whether a restart rule (KEP-5307) is about an exit code. Its only
// action is to restart the container.
func matchesExit(r *v1.ContainerRestartRule, code int) bool {
	if r.ExitCodes == nil {
		return false
	}
	return slices.Contains(r.ExitCodes.Values, int32(code)) == (r.ExitCodes.Operator == v1.ContainerRestartRuleOnExitCodesOpIn)
}

// nextAttempt numbers the next run.
func (c *ctr) nextAttempt() int {
	if c.cur == nil {
		return 0
	}
	return c.cur.Attempt + 1
}
