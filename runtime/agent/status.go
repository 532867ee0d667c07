package agent

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of waiting containers, as kubectl users know them.
const (
	reasonCreating     = "ContainerCreating"
	reasonInitializing = "PodInitializing"
	reasonCrashLoop    = "CrashLoopBackOff"
	reasonErrPull      = "ErrImagePull"
	reasonPullBackoff  = "ImagePullBackOff"
	reasonNeverPull    = "ErrImageNeverPull"
	reasonInvalidName  = "InvalidImageName"
	reasonConfigError  = "CreateContainerConfigError"
	reasonCreateError  = "CreateContainerError"

	containerIDPrefix = "gitk8s://"

	// showErrorFor is how long an error is shown before the back-off that follows.
	showErrorFor = 2 * time.Second
)

var pullReasons = []string{reasonErrPull, reasonPullBackoff, reasonNeverPull}

// ownConditions are the pod conditions that the node writes; all others are left
// as they are.
var ownConditions = []v1.PodConditionType{v1.PodReadyToStartContainers, v1.PodInitialized, v1.PodReady, v1.ContainersReady}

// buildStatus computes the whole status of a pod. last is the status computed
// before, for the times of the conditions.
func buildStatus(s *podState, last v1.PodStatus, nodeIPs []netip.Addr, now time.Time) v1.PodStatus {
	st := v1.PodStatus{
		QOSClass:           qosClass(s.pod),
		NominatedNodeName:  s.pod.Status.NominatedNodeName,
		ObservedGeneration: s.pod.Generation,
	}
	setHostIPs(&st, nodeIPs)
	if !s.startTime.IsZero() {
		t := stamp(s.startTime)
		st.StartTime = &t
	}
	if len(s.ips) > 0 && (s.sandbox != sandboxRemoved || s.terminal != "") {
		setPodIPs(&st, s.ips)
	}
	for _, c := range s.ctrs {
		if s.failure != nil && s.failure.Rejected {
			break // nothing is known of containers that were never looked at
		}
		cs := containerStatus(s, c, now)
		switch c.kind {
		case mainCtr:
			st.ContainerStatuses = append(st.ContainerStatuses, cs)
		case ephemeralCtr:
			st.EphemeralContainerStatuses = append(st.EphemeralContainerStatuses, cs)
		default:
			st.InitContainerStatuses = append(st.InitContainerStatuses, cs)
		}
	}
	st.Phase = phase(s)
	if s.failure != nil {
		st.Reason, st.Message = s.failure.Reason, s.failure.Message
	}
	st.Conditions = conditions(s, &st, last, now)
	return st
}

func setHostIPs(st *v1.PodStatus, ips []netip.Addr) {
	st.HostIP, st.HostIPs = ips[0].String(), nil
	for _, ip := range ips {
		st.HostIPs = append(st.HostIPs, v1.HostIP{IP: ip.String()})
	}
}

func setPodIPs(st *v1.PodStatus, ips []netip.Addr) {
	st.PodIP, st.PodIPs = ips[0].String(), nil
	for _, ip := range ips {
		st.PodIPs = append(st.PodIPs, v1.PodIP{IP: ip.String()})
	}
}

func containerStatus(s *podState, c *ctr, now time.Time) v1.ContainerStatus {
	cs := v1.ContainerStatus{Name: c.spec.Name, Image: c.spec.Image}
	if c.cur != nil {
		cs.RestartCount = int32(c.cur.Attempt)
		cs.ContainerID = containerID(s, c.cur)
		if c.cur.Image != "" {
			cs.Image = c.cur.Image
		}
		cs.ImageID = c.cur.ImageID
		if u := c.cur.User; u != nil { // KEP-3619
			cs.User = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: u.UID, GID: u.GID, SupplementalGroups: u.Groups}}
		}
	}
	if c.prev != nil {
		cs.LastTerminationState = terminatedState(s, c.prev)
	}
	if c.kind != ephemeralCtr { // which have no probes and are never ready
		started := c.running() && c.started
		cs.Started = &started
		cs.Ready = started && c.ready
	}
	switch {
	case c.running():
		cs.State.Running = &v1.ContainerStateRunning{StartedAt: stamp(c.cur.StartedAt)}
	case c.exited() && (s.ending() || c.wait.Reason == "" && !c.starting):
		cs.State = terminatedState(s, c.cur)
		cs.Ready = c.kind == initCtr && c.done
	case c.exited():
		// Between two runs: the one that ended is the last state.
		cs.LastTerminationState = terminatedState(s, c.cur)
		cs.State.Waiting = waitingState(s, c, now)
	case s.terminal == v1.PodFailed && c.kind == mainCtr && (s.mainStarted || !hasInit(s)):
		cs.State.Terminated = neverRan()
	default:
		cs.State.Waiting = waitingState(s, c, now)
	}
	return cs
}

func waitingState(s *podState, c *ctr, now time.Time) *v1.ContainerStateWaiting {
	w := c.wait
	if w.Reason == "" {
		w.Reason = reasonCreating
		if c.kind == mainCtr && !s.mainStarted && hasInit(s) {
			w.Reason = reasonInitializing
		}
		w.Message = s.sandboxWait.Message
		if s.sandboxWait.Reason != "" {
			w.Reason = s.sandboxWait.Reason
		}
	}
	switch {
	case w.Reason == reasonErrPull && now.Sub(w.Since) >= showErrorFor:
		w.Reason = reasonPullBackoff
		w.Message = fmt.Sprintf("Back-off pulling image %q: %s", c.spec.Image, w.Message)
	case w.Reason == "RunContainerError" && c.crash.Delay > 0 && now.Sub(w.Since) >= showErrorFor:
		w.Reason, w.Message = reasonCrashLoop, backoffMessage(c.crash.Delay, c.spec.Name, s.pod)
	}
	return &v1.ContainerStateWaiting{Reason: w.Reason, Message: w.Message}
}

// neverRan is the state of a container that its pod failed before, as Kubernetes has it for
// all of which it knows no end once the pod is initialized (TerminatePod of the kubelet).
func neverRan() *v1.ContainerStateTerminated {
	return &v1.ContainerStateTerminated{
		ExitCode: 137,
		Reason:   "ContainerStatusUnknown",
		Message:  "The container could not be located when the pod was terminated",
	}
}

func hasInit(s *podState) bool { return len(s.pod.Spec.InitContainers) > 0 }

func containerID(s *podState, in *instance) string {
	return containerIDPrefix + string(s.pod.UID) + "/" + in.ID
}

func terminatedState(s *podState, in *instance) v1.ContainerState {
	return v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
		ExitCode:    int32(in.ExitCode),
		Reason:      in.Reason,
		Message:     in.Message,
		StartedAt:   stamp(in.StartedAt),
		FinishedAt:  stamp(in.FinishedAt),
		ContainerID: containerID(s, in),
	}}
}

// stamp is t as the API stores it, in whole seconds, so that what was written
// equals what is read back.
func stamp(t time.Time) metav1.Time { return metav1.NewTime(t.Truncate(time.Second)) }

// exitReason names how a container ended.
func exitReason(code int, oom bool) string {
	switch {
	case oom && code != 0:
		return "OOMKilled"
	case code == 0:
		return "Completed"
	}
	return "Error"
}

func backoffMessage(delay time.Duration, name string, pod *v1.Pod) string {
	return fmt.Sprintf("back-off %s restarting failed container=%s pod=%s", delay, name, podText(pod))
}

func podText(pod *v1.Pod) string {
	return fmt.Sprintf("%s_%s(%s)", pod.Name, pod.Namespace, pod.UID)
}

// phase follows "Pod phase" in the Kubernetes documentation of the pod lifecycle.
func phase(s *podState) v1.PodPhase {
	running, begun := false, false
	exits, mains, failed := 0, 0, 0
	for _, c := range s.ctrs {
		running = running || c.running() || c.stopping
		if c.kind != mainCtr {
			begun = begun || c.kind == sidecarCtr && s.mainStarted
			continue
		}
		mains++
		if c.cur != nil {
			begun = true
		}
		if c.exited() {
			exits++
			if c.cur.ExitCode != 0 {
				failed++
			}
		}
	}
	ended := !running && (s.sandbox == sandboxRemoved || s.sandbox == sandboxNone || s.sandbox == sandboxRemoving)
	switch {
	case s.terminal != "" && !running:
		return s.terminal
	case s.pod.DeletionTimestamp != nil && ended && begun && exits == mains && failed == 0:
		return v1.PodSucceeded
	case s.pod.DeletionTimestamp != nil && ended && begun:
		return v1.PodFailed
	case begun || s.mainStarted:
		return v1.PodRunning
	}
	return v1.PodPending
}

func conditions(s *podState, st *v1.PodStatus, last v1.PodStatus, now time.Time) []v1.PodCondition {
	ph := st.Phase
	var out []v1.PodCondition
	set := func(t v1.PodConditionType, ok bool, reason, message string) {
		c := v1.PodCondition{Type: t, Status: v1.ConditionTrue, LastTransitionTime: stamp(now), ObservedGeneration: s.pod.Generation}
		if !ok {
			c.Status, c.Reason, c.Message = v1.ConditionFalse, reason, message
		} else if reason == "PodCompleted" {
			c.Reason = reason
		}
		if old := findCondition(last.Conditions, t); old != nil && old.Status == c.Status {
			c.LastTransitionTime = old.LastTransitionTime
		}
		out = append(out, c)
	}

	set(v1.PodReadyToStartContainers, s.sandbox == sandboxReady || s.sandbox == sandboxMaking && s.mainStarted, "", "")

	uninit := uninitialized(s)
	switch {
	case ph == v1.PodSucceeded:
		set(v1.PodInitialized, true, "PodCompleted", "")
	default:
		set(v1.PodInitialized, len(uninit) == 0, "ContainersNotInitialized", "containers with incomplete status: "+list(uninit))
	}

	unready := unreadyContainers(s)
	reason, message := "ContainersNotReady", "containers with unready status: "+list(unready)
	ready := len(unready) == 0 && len(uninit) == 0 && ph == v1.PodRunning
	switch {
	case ph == v1.PodSucceeded:
		reason, message = "PodCompleted", ""
	case ph == v1.PodFailed:
		reason, message = "PodFailed", ""
	}
	podReady, podReason, podMessage := ready, reason, message
	if ready {
		if gates := closedGates(s.pod); len(gates) > 0 {
			podReady, podReason = false, "ReadinessGatesNotReady"
			podMessage = "corresponding condition of pod readiness gate " + strings.Join(gates, ", ") + " is not \"True\""
		}
	}
	set(v1.PodReady, podReady, podReason, podMessage)
	set(v1.ContainersReady, ready, reason, message)

	if f := s.failure; f != nil && !f.Rejected && (f.Reason == reasonEvicted || f.Reason == reasonShutdown) {
		// KEP-3329: the pod has not failed by itself.
		set(v1.DisruptionTarget, true, "", "")
		last := &out[len(out)-1]
		last.Reason, last.Message = v1.PodReasonTerminationByKubelet, f.Message
	}
	if findCondition(s.pod.Status.Conditions, v1.PodScheduled) == nil {
		// Nobody but the node says it of a pod that was made with a nodeName.
		set(v1.PodScheduled, true, "", "")
	}
	for _, c := range s.pod.Status.Conditions {
		if !isOwnCondition(c.Type) && findCondition(out, c.Type) == nil {
			out = append(out, c)
		}
	}
	return out
}

// list prints names as Kubernetes messages do: "[a b]".
func list(names []string) string { return "[" + strings.Join(names, " ") + "]" }

func uninitialized(s *podState) []string {
	var names []string
	for _, c := range s.ctrs {
		switch {
		case s.mainStarted:
		case c.kind == initCtr && !c.done, c.kind == sidecarCtr && !(c.running() && c.started):
			names = append(names, c.spec.Name)
		}
	}
	return names
}

func unreadyContainers(s *podState) []string {
	var names []string
	for _, c := range s.ctrs {
		if (c.kind == mainCtr || c.kind == sidecarCtr) && !(c.running() && c.started && c.ready) {
			names = append(names, c.spec.Name)
		}
	}
	return names
}

// closedGates are the pod's readiness gates (KEP-580) whose condition is not true.
func closedGates(pod *v1.Pod) []string {
	var closed []string
	for _, g := range pod.Spec.ReadinessGates {
		c := findCondition(pod.Status.Conditions, g.ConditionType)
		if c == nil || c.Status != v1.ConditionTrue {
			closed = append(closed, fmt.Sprintf("%q", string(g.ConditionType)))
		}
	}
	return closed
}

func findCondition(list []v1.PodCondition, t v1.PodConditionType) *v1.PodCondition {
	for i := range list {
		if list[i].Type == t {
			return &list[i]
		}
	}
	return nil
}

func isOwnCondition(t v1.PodConditionType) bool {
	for _, own := range ownConditions {
		if t == own {
			return true
		}
	}
	return false
}
