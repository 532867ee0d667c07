package apiserver_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// TestPriority creates pods with and without classes.
func TestPriority(t *testing.T) {
	cp := apiservertest.StartWith(t, nil)
	client := kubernetes.NewForConfigOrDie(cp.Admin)
	ctx, classes, pods := t.Context(), client.SchedulingV1().PriorityClasses(), client.CoreV1().Pods("default")
	create := func(name, class string, change ...func(*corev1.Pod)) (*corev1.Pod, error) {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"version": "1"}},
			Spec:       corev1.PodSpec{PriorityClassName: class, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}
		for _, f := range change {
			f(p)
		}
		return pods.Create(ctx, p, metav1.CreateOptions{})
	}
	makeClass := func(name string, value int32, change ...func(*schedulingv1.PriorityClass)) error {
		c := &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value}
		for _, f := range change {
			f(c)
		}
		made, err := classes.Create(ctx, c, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		// Which class is the default one is known once the watch cache has seen it.
		_, err = classes.List(ctx, metav1.ListOptions{ResourceVersion: made.ResourceVersion})
		return err
	}
	is := func(what string, err error, want string) {
		t.Helper()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	_, err := create("x", "y")
	is("an unknown class", err, `pods "x" is forbidden: no PriorityClass with name y was found`)
	if p, err := create("plain", ""); err != nil || *p.Spec.Priority != 0 || *p.Spec.PreemptionPolicy != corev1.PreemptLowerPriority || p.Spec.PriorityClassName != "" {
		t.Errorf("a pod without a class: %+v, %v", p, err)
	}
	if p, err := create("critical", "system-node-critical"); err != nil || *p.Spec.Priority != 2_000_001_000 {
		t.Errorf("a system pod: %+v, %v", p, err)
	}
	byDefault := func(c *schedulingv1.PriorityClass) { c.GlobalDefault = true }
	never := func(c *schedulingv1.PriorityClass) { c.PreemptionPolicy = ptr.To(corev1.PreemptNever) }
	if err := makeClass("high", 1000, never); err != nil {
		t.Fatal(err)
	}
	if p, err := create("high", "high"); err != nil || *p.Spec.Priority != 1000 || *p.Spec.PreemptionPolicy != corev1.PreemptNever {
		t.Errorf("a pod of a class: %+v, %v", p, err)
	}
	_, err = create("own", "high", func(p *corev1.Pod) { p.Spec.Priority = ptr.To[int32](7) })
	is("a priority of its own", err, "the integer value of priority (7) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name")
	if err := makeClass("usual", 5, byDefault); err != nil {
		t.Fatal(err)
	}
	is("two default classes", makeClass("other", 6, byDefault), "PriorityClass usual is already marked as default. Only one default can exist")
	if p, err := create("usual", ""); err != nil || *p.Spec.Priority != 5 || p.Spec.PriorityClassName != "usual" {
		t.Errorf("a pod of the default class: %+v, %v", p, err)
	}
	is("deleting a system class", classes.Delete(ctx, "system-cluster-critical", metav1.DeleteOptions{}), "this is a system priority class and cannot be deleted")
	if err := classes.Delete(ctx, "high", metav1.DeleteOptions{}); err != nil {
		t.Error(err)
	}

	p, err := create("gated", "", func(p *corev1.Pod) {
		p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}}
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 1, TopologyKey: "zone", WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: &metav1.LabelSelector{}, MatchLabelKeys: []string{"version", "absent"},
		}}
	})
	if err != nil || len(p.Status.Conditions) != 1 || p.Status.Conditions[0].Reason != corev1.PodReasonSchedulingGated || p.Status.Conditions[0].Status != corev1.ConditionFalse {
		t.Fatalf("a gated pod: %+v, %v", p.Status, err)
	}
	if s := metav1.FormatLabelSelector(p.Spec.TopologySpreadConstraints[0].LabelSelector); s != "version in (1)" {
		t.Errorf("matchLabelKeys became %q", s)
	}
}
