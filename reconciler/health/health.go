// Package health says how far an object has come towards its spec, by the rules
// of kstatus (the status conventions that kubectl's and Flux' tooling follow): a
// pure function of the object as the API server has it.
package health

import (
	"fmt"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// Status of an object.
type Status string

const (
	// Current: the object is as its spec wants it.
	Current Status = "Current"
	// InProgress: it is on the way.
	InProgress Status = "InProgress"
	// Failed: it has stopped short of its spec and will not go on by itself.
	Failed Status = "Failed"
	// Terminating: it is being deleted.
	Terminating Status = "Terminating"
)

// Result is a status with its reason in a sentence.
type Result struct {
	Status  Status
	Message string
	// Done and Total count replicas, where the kind has any.
	Done, Total int64
}

// Of computes the status of an object.
func Of(u *unstructured.Unstructured) Result {
	if u.GetDeletionTimestamp() != nil {
		return Result{Status: Terminating, Message: "is being deleted"}
	}
	if observed, ok, _ := unstructured.NestedInt64(u.Object, "status", "observedGeneration"); ok && observed < u.GetGeneration() {
		return progress("the controller has not seen the newest spec yet")
	}
	switch gk := u.GroupVersionKind().GroupKind(); gk.String() {
	case "Deployment.apps":
		return deployment(u)
	case "ReplicaSet.apps":
		return replicaSet(u)
	case "StatefulSet.apps":
		return statefulSet(u)
	case "DaemonSet.apps":
		return daemonSet(u)
	case "Pod":
		return pod(u)
	case "PersistentVolumeClaim":
		return claim(u)
	case "Job.batch":
		return job(u)
	case "Gateway.gateway.networking.k8s.io":
		return gateway(u)
	case "HTTPRoute.gateway.networking.k8s.io", "GRPCRoute.gateway.networking.k8s.io":
		return gatewayRoute(u)
	case "Namespace":
		if phase := str(u, "status", "phase"); phase != "" && phase != "Active" {
			return progress("is %s", phase)
		}
		return Result{Status: Current}
	}
	return generic(u)
}

func progress(format string, args ...any) Result {
	return Result{Status: InProgress, Message: fmt.Sprintf(format, args...)}
}

func deployment(u *unstructured.Unstructured) Result {
	want := num(u, 1, "spec", "replicas")
	updated, ready := num(u, 0, "status", "updatedReplicas"), num(u, 0, "status", "readyReplicas")
	all, available := num(u, 0, "status", "replicas"), num(u, 0, "status", "availableReplicas")
	r := Result{Status: InProgress, Done: min(updated, available), Total: want}
	if c := condition(u, "Progressing"); c != nil && c["reason"] == "ProgressDeadlineExceeded" {
		r.Status, r.Message = Failed, fmt.Sprintf("missed its progress deadline of %ds with %d of %d updated pods available", num(u, 600, "spec", "progressDeadlineSeconds"), min(updated, available), want)
		return r
	}
	if num(u, -1, "status", "observedGeneration") < 0 {
		r.Message = "has not been looked at yet"
		return r
	}
	switch {
	case updated < want:
		r.Message = fmt.Sprintf("%d of %d pods updated", updated, want)
	case all > updated:
		r.Message = fmt.Sprintf("%d old pods still to end", all-updated)
	case ready < want:
		r.Message = fmt.Sprintf("%d of %d pods ready", ready, want)
	case available < want:
		r.Message = fmt.Sprintf("%d of %d pods available", available, want)
	default:
		r.Status, r.Message = Current, fmt.Sprintf("%d of %d pods available", available, want)
	}
	return r
}

func replicaSet(u *unstructured.Unstructured) Result {
	want := num(u, 1, "spec", "replicas")
	available := num(u, 0, "status", "availableReplicas")
	r := Result{Status: InProgress, Done: available, Total: want, Message: fmt.Sprintf("%d of %d pods available", available, want)}
	if c := condition(u, "ReplicaFailure"); c != nil && c["status"] == "True" {
		r.Message = fmt.Sprint(c["message"])
		return r
	}
	if num(u, -1, "status", "observedGeneration") >= 0 && available == want && num(u, 0, "status", "replicas") == want {
		r.Status = Current
	}
	return r
}

func pod(u *unstructured.Unstructured) Result {
	ready := condition(u, "Ready")
	switch phase := str(u, "status", "phase"); {
	case phase == "Succeeded":
		return Result{Status: Current, Message: "has completed"}
	case phase == "Failed":
		return Result{Status: Failed, Message: orElse(str(u, "status", "message"), "has failed")}
	case phase == "Running" && ready != nil && ready["status"] == "True":
		return Result{Status: Current, Message: "is Ready"}
	case phase == "Pending":
		if c := condition(u, "PodScheduled"); c != nil && c["status"] == "False" {
			return progress("cannot be scheduled: %v", c["message"])
		}
	}
	return progress("is not Ready")
}

// claim: one that waits for its first consumer stays Pending for as long as no pod
// uses it, and one that a pod waits for shows in the pod. Neither holds anything up
// by itself.
func claim(u *unstructured.Unstructured) Result {
	switch phase := str(u, "status", "phase"); phase {
	case "Bound":
		return Result{Status: Current}
	case "Lost":
		return Result{Status: Failed, Message: "has lost its volume"}
	default:
		return Result{Status: Current, Message: "is " + orElse(phase, "new") + ", not Bound"}
	}
}

// generic trusts the standard conditions of kinds it does not know.
func generic(u *unstructured.Unstructured) Result {
	if c := condition(u, "Stalled"); c != nil && c["status"] == "True" {
		return Result{Status: Failed, Message: fmt.Sprint(c["message"])}
	}
	if c := condition(u, "Reconciling"); c != nil && c["status"] == "True" {
		return progress("%v", c["message"])
	}
	if c := condition(u, "Ready"); c != nil && c["status"] != "True" {
		return progress("is not Ready: %v", c["message"])
	}
	return Result{Status: Current}
}

func condition(u *unstructured.Unstructured, kind string) map[string]any {
	list, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
	for _, item := range list {
		if c, ok := item.(map[string]any); ok && c["type"] == kind {
			return c
		}
	}
	return nil
}

func num(u *unstructured.Unstructured, missing int64, fields ...string) int64 {
	n, ok, err := unstructured.NestedInt64(u.Object, fields...)
	if !ok || err != nil {
		return missing
	}
	return n
}

func str(u *unstructured.Unstructured, fields ...string) string {
	s, _, _ := unstructured.NestedString(u.Object, fields...)
	return s
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
