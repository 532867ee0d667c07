package apiserver

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// priorityResources are the kinds that say which pods matter more.
func priorityResources() []*resource {
	return []*resource{
		{
			gv: schedulingv1.SchemeGroupVersion, kind: "PriorityClass", plural: "priorityclasses",
			singular: "priorityclass", shortNames: []string{"pc"}, generation: true,
			newObject: object[schedulingv1.PriorityClass], newList: object[schedulingv1.PriorityClassList],
			table: printers.PriorityClasses, name: apivalidation.NameIsDNSSubdomain,
			check: checked(validation.PriorityClass),
		},
	}
}

// bootstrapPriorities makes the two classes that every cluster has.
func bootstrapPriorities(ctx context.Context, client kubernetes.Interface) error {
	for _, class := range validation.SystemPriorityClasses() {
		_, err := client.SchedulingV1().PriorityClasses().Create(ctx, class, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create priorityclass %s: %w", class.Name, err)
		}
	}
	return nil
}

// priorityAdmission gives pods the priority of their class, and keeps the classes
// sane, as the Priority admission plugin of kube-apiserver.
type priorityAdmission struct{ server *Server }

var (
	_ admission.MutationInterface   = priorityAdmission{}
	_ admission.ValidationInterface = priorityAdmission{}
)

// Handles implements admission.Interface.
func (priorityAdmission) Handles(op admission.Operation) bool { return op != admission.Connect }

// Admit resolves the class of a pod that is created.
func (p priorityAdmission) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	if old, ok := a.GetOldObject().(*corev1.Pod); ok && a.GetOperation() == admission.Update {
		// Clients that do not know these fields drop them.
		if pod.Spec.Priority == nil {
			pod.Spec.Priority = old.Spec.Priority
		}
		if pod.Spec.PreemptionPolicy == nil {
			pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
		}
		return nil
	}
	if a.GetOperation() != admission.Create {
		return nil
	}
	class, err := p.classOf(ctx, a, pod.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	pod.Spec.PriorityClassName = class.Name
	if v := pod.Spec.Priority; v != nil && *v != class.Value {
		return admission.NewForbidden(a, fmt.Errorf(
			"the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *v, class.Value))
	}
	pod.Spec.Priority = &class.Value
	policy := ptr.Deref(class.PreemptionPolicy, corev1.PreemptLowerPriority)
	if v := pod.Spec.PreemptionPolicy; v != nil && *v != policy {
		return admission.NewForbidden(a, fmt.Errorf(
			"the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *v, policy))
	}
	pod.Spec.PreemptionPolicy = &policy
	return nil
}

// classOf returns the class by name; without one the default class, or one of no
// name and no priority.
func (p priorityAdmission) classOf(ctx context.Context, a admission.Attributes, name string) (*schedulingv1.PriorityClass, error) {
	if name == "" {
		class, err := p.defaultClass(ctx)
		if class == nil {
			class = &schedulingv1.PriorityClass{}
		}
		return class, err
	}
	// The watch cache answers nearly always; a miss is looked up in the store, for a
	// class made a moment ago.
	obj, err := p.classes().Get(ctx, name, &metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		obj, err = p.classes().Get(ctx, name, &metav1.GetOptions{})
	}
	if apierrors.IsNotFound(err) {
		return nil, admission.NewForbidden(a, fmt.Errorf("no PriorityClass with name %v was found", name))
	}
	if err != nil {
		return nil, fmt.Errorf("failed to resolve PriorityClass with name %s: %w", name, err)
	}
	return obj.(*schedulingv1.PriorityClass), nil
}

// defaultClass returns the default class, of several the lowest.
func (p priorityAdmission) defaultClass(ctx context.Context) (*schedulingv1.PriorityClass, error) {
	list, err := p.classes().List(ctx, &internalversion.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("failed to get default priority class: %w", err)
	}
	var best *schedulingv1.PriorityClass
	items := list.(*schedulingv1.PriorityClassList).Items
	for i := range items {
		if c := &items[i]; c.GlobalDefault && (best == nil || c.Value < best.Value) {
			best = c
		}
	}
	return best, nil
}

func (p priorityAdmission) classes() *store {
	return p.server.stores[schedulingv1.Resource("priorityclasses")]
}

// Validate lets there be one default class, and keeps those of the system.
func (p priorityAdmission) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetResource().GroupResource() != schedulingv1.Resource("priorityclasses") || a.GetSubresource() != "" {
		return nil
	}
	if a.GetOperation() == admission.Delete {
		if strings.HasPrefix(a.GetName(), validation.SystemPriorityPrefix) {
			return admission.NewForbidden(a, errors.New("this is a system priority class and cannot be deleted"))
		}
		return nil
	}
	class, ok := a.GetObject().(*schedulingv1.PriorityClass)
	if !ok || !class.GlobalDefault {
		return nil
	}
	other, err := p.defaultClass(ctx)
	if err != nil {
		return err
	}
	if other != nil && (a.GetOperation() == admission.Create || other.Name != class.Name) {
		return admission.NewForbidden(a, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", other.Name))
	}
	return nil
}
