package apiserver

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/dryrun"

	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// podCreate does what kube-apiserver's strategy and its admission plugins
// ServiceAccount and DefaultTolerationSeconds do to a new pod.
func podCreate(_ context.Context, obj runtime.Object) {
	pod := obj.(*corev1.Pod)
	if !validation.IsMirror(pod) { // which is what the node runs, and stays so
		defaults.AdmitPod(pod)
	}
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: defaults.QOSClass(pod)}
	mergeLabelKeys(pod)
	markGated(pod)
}

func podUpdate(_ context.Context, obj, old runtime.Object) {
	pod, oldPod := obj.(*corev1.Pod), old.(*corev1.Pod)
	// A client that knows only one of the two names of the service account must
	// not be taken to change the other.
	if pod.Spec.ServiceAccountName == "" {
		pod.Spec.ServiceAccountName = oldPod.Spec.ServiceAccountName
		pod.Spec.DeprecatedServiceAccount = oldPod.Spec.DeprecatedServiceAccount
	}
}

func podStatusUpdate(_ context.Context, obj, old runtime.Object) {
	pod, oldPod := obj.(*corev1.Pod), old.(*corev1.Pod)
	if pod.Status.QOSClass == "" {
		pod.Status.QOSClass = oldPod.Status.QOSClass
	}
}

// podGrace decides how long a pod may take to stop. A pod that no worker runs, or
// that has ended, is removed at once ("Termination of Pods" in Kubernetes' Pod
// Lifecycle page).
func podGrace(obj runtime.Object, options *metav1.DeleteOptions) bool {
	if options == nil {
		return false
	}
	pod := obj.(*corev1.Pod)
	period := int64(corev1.DefaultTerminationGracePeriodSeconds)
	switch {
	case options.GracePeriodSeconds != nil:
		period = *options.GracePeriodSeconds
	case pod.Spec.TerminationGracePeriodSeconds != nil:
		period = *pod.Spec.TerminationGracePeriodSeconds
	}
	if pod.Spec.NodeName == "" || pod.Status.Phase == corev1.PodFailed || pod.Status.Phase == corev1.PodSucceeded {
		period = 0
	}
	if period < 0 {
		period = 1
	}
	options.GracePeriodSeconds = &period
	return true
}

func podSubresources(s *Server, st *store) map[string]rest.Storage {
	workers := &workers{server: s, pods: st}
	return map[string]rest.Storage{
		"binding":     &bindingREST{st},
		"eviction":    &evictionREST{server: s, pods: st},
		"log":         &logREST{workers},
		"exec":        &execREST{workers},
		"attach":      &attachREST{workers},
		"portforward": &portForwardREST{workers},
		"proxy":       &podProxyREST{workers},

		"ephemeralcontainers": openEphemeralContainers(st),
	}
}

// bindingREST assigns a pod to a node.
type bindingREST struct{ pods *store }

var _ rest.NamedCreater = &bindingREST{}

// New implements rest.Storage.
func (*bindingREST) New() runtime.Object { return &corev1.Binding{} }

// Destroy implements rest.Storage.
func (*bindingREST) Destroy() {}

// Create implements rest.NamedCreater.
func (b *bindingREST) Create(ctx context.Context, name string, obj runtime.Object, validate rest.ValidateObjectFunc, options *metav1.CreateOptions) (runtime.Object, error) {
	binding, ok := obj.(*corev1.Binding)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("not a Binding: %T", obj))
	}
	if name != binding.Name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if kind := binding.Target.Kind; (kind != "" && kind != "Node") || binding.Target.Name == "" {
		return nil, apierrors.NewBadRequest("target.name must name a Node")
	}
	if validate != nil {
		if err := validate(ctx, binding.DeepCopy()); err != nil {
			return nil, err
		}
	}
	var pre *metav1.Preconditions
	if binding.UID != "" || binding.ResourceVersion != "" {
		pre = &metav1.Preconditions{}
		if binding.UID != "" {
			pre.UID = &binding.UID
		}
		if binding.ResourceVersion != "" {
			pre.ResourceVersion = &binding.ResourceVersion
		}
	}
	_, err := guaranteedUpdate(ctx, b.pods, name, pre, dryrun.IsDryRun(options.DryRun), func(obj runtime.Object) error {
		return bind(obj.(*corev1.Pod), binding)
	})
	if err != nil {
		return nil, err
	}
	return &metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusCreated}, nil
}

func bind(pod *corev1.Pod, binding *corev1.Binding) error {
	conflict := func(format string, args ...any) error {
		return apierrors.NewConflict(corev1.Resource("pods/binding"), pod.Name, fmt.Errorf(format, args...))
	}
	if pod.DeletionTimestamp != nil {
		return conflict("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	}
	if pod.Spec.NodeName != "" {
		return conflict("pod %s is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	}
	if len(pod.Spec.SchedulingGates) > 0 {
		return conflict("pod %s has non-empty .spec.schedulingGates", pod.Name)
	}
	pod.Spec.NodeName = binding.Target.Name
	for k, v := range binding.Annotations {
		metav1.SetMetaDataAnnotation(&pod.ObjectMeta, k, v)
	}
	for k, v := range binding.Labels {
		metav1.SetMetaDataLabel(&pod.ObjectMeta, k, v)
	}
	setScheduled(pod)
	return nil
}

// setScheduled sets the PodScheduled condition.
func setScheduled(pod *corev1.Pod) {
	setPodCondition(pod, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
	})
}

// setPodCondition replaces the condition of the same type, or adds one.
func setPodCondition(pod *corev1.Pod, c corev1.PodCondition) {
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == c.Type {
			pod.Status.Conditions[i] = c
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, c)
}
