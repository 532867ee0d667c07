// Package plan compares what a commit wants with what the cluster has and says
// what is to be done, in which order. A Plan is data: ordered, printable and
// comparable. Make is pure; finding out what the cluster has is the caller's.
package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/reconciler/render"
)

// Verb is what happens to one object.
type Verb string

const (
	// Create an object that does not exist.
	Create Verb = "create"
	// Configure an object that differs.
	Configure Verb = "configure"
	// Replace an object that cannot be changed: it is deleted and created.
	Replace Verb = "replace"
	// Unchanged objects are left alone.
	Unchanged Verb = "unchanged"
	// Prune an object whose manifest has gone.
	Prune Verb = "prune"
)

// Action is one step of a plan.
type Action struct {
	Verb Verb
	ID   render.ID
	// Desired is nil for Prune.
	Desired *render.Object
	// Live is the object as the cluster has it; nil for Create.
	Live *unstructured.Unstructured
	// Applied is the object as it would be afterwards, where that is known.
	Applied *unstructured.Unstructured
}

// Plan is what it takes to make the cluster equal to a commit, in order.
type Plan struct {
	Actions []Action
}

// Changes says whether anything would be done.
func (p Plan) Changes() bool {
	return slices.ContainsFunc(p.Actions, func(a Action) bool { return a.Verb != Unchanged })
}

// Count returns how many actions have the verb.
func (p Plan) Count(v Verb) (n int) {
	for _, a := range p.Actions {
		if a.Verb == v {
			n++
		}
	}
	return n
}

// Summary is the plan in one line: "1 to create, 2 to configure, 14 unchanged".
func (p Plan) Summary() string {
	var parts []string
	for _, v := range []Verb{Create, Configure, Replace, Prune} {
		if n := p.Count(v); n > 0 {
			parts = append(parts, fmt.Sprintf("%d to %s", n, v))
		}
	}
	if n := p.Count(Unchanged); n > 0 || len(parts) == 0 {
		parts = append(parts, fmt.Sprintf("%d unchanged", n))
	}
	return strings.Join(parts, ", ")
}

// Owner identifies the Application whose objects are planned.
type Owner struct{ Namespace, Name string }

// String is "namespace/name".
func (o Owner) String() string { return o.Namespace + "/" + o.Name }

// OwnerOf returns the Application that an object belongs to, if any.
func OwnerOf(u *unstructured.Unstructured) (Owner, bool) {
	name, ok := u.GetLabels()[v1alpha1.LabelApplication]
	if !ok {
		return Owner{}, false
	}
	return Owner{u.GetAnnotations()[v1alpha1.AnnotationApplicationNamespace], name}, true
}

// ConflictError says that an object belongs to another Application.
type ConflictError struct {
	Object render.Object
	Owner  Owner
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s: %s belongs to application %s; remove it from one of the two repositories, or delete it from the cluster first",
		e.Object.Source(), render.IDOf(e.Object.Unstructured), e.Owner)
}

// Candidate is a wanted object with what the cluster has and would have.
type Candidate struct {
	Desired render.Object
	// Live is nil if the object does not exist.
	Live *unstructured.Unstructured
	// Applied is what the API server answered to a dry run; nil if none was needed
	// because Live already agrees.
	Applied *unstructured.Unstructured
	// Replace says that Live cannot become what is wanted.
	Replace bool
}

// Replaceable says whether an object may be deleted and made anew.
func Replaceable(u *unstructured.Unstructured) bool {
	return u.GetAnnotations()[v1alpha1.AnnotationReplace] == "enabled"
}

// Make orders the wanted objects and finds those to prune among owned, the
// objects in the cluster that belong to the Application.
func Make(owner Owner, candidates []Candidate, owned []*unstructured.Unstructured, prune bool) (Plan, []error) {
	var p Plan
	var conflicts []error
	wanted := map[render.ID]bool{}
	for _, c := range candidates {
		id := render.IDOf(c.Desired.Unstructured)
		wanted[id] = true
		a := Action{ID: id, Desired: &c.Desired, Live: c.Live, Applied: c.Applied}
		switch {
		case c.Live == nil:
			a.Verb = Create
		case c.Replace:
			a.Verb = Replace
		case c.Applied == nil || Equal(c.Live, c.Applied):
			a.Verb, a.Applied = Unchanged, nil
		default:
			a.Verb = Configure
		}
		if c.Live != nil {
			if by, ok := OwnerOf(c.Live); ok && by != owner {
				conflicts = append(conflicts, &ConflictError{c.Desired, by})
			}
		}
		p.Actions = append(p.Actions, a)
	}
	slices.SortStableFunc(p.Actions, func(a, b Action) int { return cmp.Compare(rank(a.ID), rank(b.ID)) })
	if !prune {
		return p, conflicts
	}
	var gone []Action
	for _, u := range owned {
		id := render.IDOf(u)
		if by, ok := OwnerOf(u); !ok || by != owner || wanted[id] || u.GetDeletionTimestamp() != nil {
			continue
		}
		if metav1.GetControllerOf(u) != nil {
			continue // made by a controller that copied our labels, which also removes it
		}
		if u.GetAnnotations()[v1alpha1.AnnotationPrune] == "disabled" {
			continue
		}
		gone = append(gone, Action{Verb: Prune, ID: id, Live: u})
	}
	// Pruned last, and in the reverse order of creation.
	slices.SortStableFunc(gone, func(a, b Action) int {
		return cmp.Or(cmp.Compare(rank(b.ID), rank(a.ID)), cmp.Compare(a.ID.String(), b.ID.String()))
	})
	p.Actions = append(p.Actions, gone...)
	return p, conflicts
}

// kinds in the order in which they are applied: what others refer to first. Kinds
// that are not named come before the webhooks, which could refuse the rest.
var kinds = []string{
	"Namespace", "ResourceQuota", "LimitRange", "NetworkPolicy", "PodDisruptionBudget", "PriorityClass",
	"CustomResourceDefinition", "ServiceAccount", "Secret", "ConfigMap", "StorageClass", "PersistentVolume",
	"PersistentVolumeClaim", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Service",
	"DaemonSet", "Pod", "ReplicaSet", "Deployment", "StatefulSet", "Job", "CronJob", "HorizontalPodAutoscaler",
	"IngressClass", "Ingress", "GatewayClass", "ReferenceGrant", "Gateway", "", "ValidatingWebhookConfiguration", "MutatingWebhookConfiguration",
}

func rank(id render.ID) int {
	if i := slices.Index(kinds, id.Kind); i >= 0 {
		return i
	}
	return slices.Index(kinds, "")
}
