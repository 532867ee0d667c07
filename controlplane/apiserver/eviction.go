package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"
)

const (
	// disruptedPodsLimit bounds the pods on their way out that one budget keeps
	// account of, as in kube-apiserver.
	disruptedPodsLimit = 2000
	// processing is when to ask again about a budget that the controller has not
	// seen yet.
	processing = 10 * time.Second
)

// evictionREST deletes a pod if the disruption budget over it allows that
// ("API-initiated Eviction" in Kubernetes' documentation).
type evictionREST struct {
	server *Server
	pods   *store
}

var (
	_ rest.NamedCreater             = &evictionREST{}
	_ rest.GroupVersionKindProvider = &evictionREST{}
)

// New implements rest.Storage.
func (*evictionREST) New() runtime.Object { return &policyv1.Eviction{} }

// Destroy implements rest.Storage.
func (*evictionREST) Destroy() {}

// GroupVersionKind says that the body is of another group than pods.
func (*evictionREST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return policyv1.SchemeGroupVersion.WithKind("Eviction")
}

// Create implements rest.NamedCreater.
func (e *evictionREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	eviction, ok := obj.(*policyv1.Eviction)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not an Eviction: %T", obj))
	}
	if name != eviction.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	if validate != nil {
		if err := validate(ctx, eviction.DeepCopy()); err != nil {
			return nil, err
		}
	}
	deletion := &metav1.DeleteOptions{}
	if eviction.DeleteOptions != nil {
		deletion = eviction.DeleteOptions.DeepCopy()
	}
	deletion.DryRun = append(deletion.DryRun, options.DryRun...)
	got, err := e.pods.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	pod := got.(*corev1.Pod)
	if err := e.ask(ctx, pod, dryrun.IsDryRun(deletion.DryRun)); err != nil {
		return nil, err
	}
	if err := e.evict(ctx, pod, deletion); err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusCreated}, nil
}

// ask takes the eviction off the budget over the pod, if there is one. A pod that
// does not run, or is going already, is no disruption.
func (e *evictionREST) ask(ctx context.Context, pod *corev1.Pod, dryRun bool) error {
	if pod.DeletionTimestamp != nil || pod.Status.Phase != corev1.PodRunning && pod.Status.Phase != corev1.PodUnknown {
		return nil
	}
	budgets := e.server.stores[policyv1.Resource("poddisruptionbudgets")]
	budget, err := budgetOver(ctx, budgets, pod)
	if err != nil || budget == nil {
		return err
	}
	if !podReady(pod) && unhealthyMayGo(budget) {
		return nil
	}
	_, err = guaranteedUpdate(ctx, budgets, budget.Name, &metav1.Preconditions{UID: &budget.UID}, dryRun, func(obj runtime.Object) error {
		return disrupt(obj.(*policyv1.PodDisruptionBudget), pod.Name, e.server.now())
	})
	return err
}

// budgetOver returns the budget that selects a pod, or nil.
func budgetOver(ctx context.Context, budgets *store, pod *corev1.Pod) (*policyv1.PodDisruptionBudget, error) {
	list, err := budgets.List(ctx, &internalversion.ListOptions{}) // the newest: one made just now counts
	if err != nil {
		return nil, err
	}
	var found *policyv1.PodDisruptionBudget
	items := list.(*policyv1.PodDisruptionBudgetList).Items
	for i := range items {
		selector, err := metav1.LabelSelectorAsSelector(items[i].Spec.Selector)
		if err != nil || !selector.Matches(labels.Set(pod.Labels)) {
			continue // one that can't be read protects nothing, as in Kubernetes
		}
		if found != nil {
			return nil, apierrors.NewInternalError(fmt.Errorf(
				"this pod has more than one PodDisruptionBudget, which the eviction subresource does not support: %s and %s", found.Name, items[i].Name))
		}
		found = &items[i]
	}
	return found, nil
}

// unhealthyMayGo says whether a pod that is not Ready may be evicted without a
// place in the budget (KEP-3017).
func unhealthyMayGo(b *policyv1.PodDisruptionBudget) bool {
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil && *p == policyv1.AlwaysAllow {
		return true
	}
	return b.Status.CurrentHealthy >= b.Status.DesiredHealthy && b.Status.DesiredHealthy > 0
}

// disrupt takes one disruption off a budget, or says why there is none.
func disrupt(b *policyv1.PodDisruptionBudget, pod string, now time.Time) error {
	s := &b.Status
	switch {
	case s.ObservedGeneration < b.Generation:
		return tooManyDisruptions(fmt.Sprintf("The disruption budget %s is still being processed by the server.", b.Name), processing)
	case s.DisruptionsAllowed < 0:
		return apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), b.Name, fmt.Errorf("pdb disruptions allowed is negative"))
	case len(s.DisruptedPods) > disruptedPodsLimit:
		return apierrors.NewForbidden(policyv1.Resource("poddisruptionbudget"), b.Name, fmt.Errorf("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
	case s.DisruptionsAllowed == 0:
		return tooManyDisruptions(fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", b.Name, s.DesiredHealthy, s.CurrentHealthy), 0)
	}
	s.DisruptionsAllowed--
	if s.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&s.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse,
			Reason: policyv1.InsufficientPodsReason, ObservedGeneration: s.ObservedGeneration,
		})
	}
	if s.DisruptedPods == nil {
		s.DisruptedPods = map[string]metav1.Time{}
	}
	// Until the controller has seen the pod go, nobody may count on it.
	s.DisruptedPods[pod] = metav1.NewTime(now)
	return nil
}

// tooManyDisruptions refuses an eviction. Clients wait for retry by themselves and
// in silence, so it is 0 where nobody knows how long it will take.
func tooManyDisruptions(why string, retry time.Duration) error {
	err := apierrors.NewTooManyRequests("Cannot evict pod as it would violate the pod's disruption budget.", int(retry/time.Second))
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: why})
	return err
}

// evict says on the pod why it goes (KEP-3329) and deletes it.
func (e *evictionREST) evict(ctx context.Context, pod *corev1.Pod, deletion *metav1.DeleteOptions) error {
	dryRun := dryrun.IsDryRun(deletion.DryRun)
	if pod.DeletionTimestamp == nil && !dryRun {
		pre := &metav1.Preconditions{UID: &pod.UID}
		if p := deletion.Preconditions; p != nil && p.ResourceVersion != nil {
			pre.ResourceVersion = p.ResourceVersion
		}
		changed, err := guaranteedUpdate(ctx, e.pods, pod.Name, pre, false, func(obj runtime.Object) error {
			setPodCondition(obj.(*corev1.Pod), corev1.PodCondition{
				Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(e.server.now()),
				Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
			})
			return nil
		})
		if err != nil {
			return err
		}
		if p := deletion.Preconditions; p != nil && p.ResourceVersion != nil {
			version := changed.(*corev1.Pod).ResourceVersion
			p.ResourceVersion = &version
		}
	}
	_, _, err := e.pods.Delete(ctx, pod.Name, rest.ValidateAllObjectFunc, deletion)
	return err
}

func podReady(pod *corev1.Pod) bool {
	for i := range pod.Status.Conditions {
		if c := &pod.Status.Conditions[i]; c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}
