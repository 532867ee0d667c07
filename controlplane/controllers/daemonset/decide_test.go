package daemonset

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var now = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func newSet(unavailable, surge string) *appsv1.DaemonSet {
	u, s := intstr.Parse(unavailable), intstr.Parse(surge)
	return &appsv1.DaemonSet{
		ObjectMeta: metav1.ObjectMeta{Name: "ds", Namespace: "default", UID: "set", Generation: 1},
		Spec: appsv1.DaemonSetSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "ds"}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "ds"}}},
			UpdateStrategy: appsv1.DaemonSetUpdateStrategy{
				Type:          appsv1.RollingUpdateDaemonSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDaemonSet{MaxUnavailable: &u, MaxSurge: &s},
			},
		},
	}
}

func node(name string, taints ...corev1.Taint) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"name": name}}, Spec: corev1.NodeSpec{Taints: taints}}
}

// world reads nodes and pods from a line: "a:old b:new-,old c d/NoSchedule:new".
// Of a pod, - is one that is not ready, ~ one that is stopping, ! one that has failed.
func world(ds *appsv1.DaemonSet, line string) Snapshot {
	s := Snapshot{Set: ds, Hash: "new", BackOff: map[string]time.Duration{}}
	for _, f := range strings.Fields(line) {
		where, pods, _ := strings.Cut(f, ":")
		name, effect, tainted := strings.Cut(where, "/")
		n := node(name)
		if tainted {
			n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffect(effect)}}
		}
		s.Nodes = append(s.Nodes, n)
		for i, text := range strings.Split(pods, ",") {
			if text == "" {
				continue
			}
			hash := strings.TrimRight(text, "-~!")
			p := newPod(ds, name, hash)
			p.Name = fmt.Sprintf("%s-%s", name, text)
			p.UID, p.CreationTimestamp = types.UID(p.Name), metav1.NewTime(now.Add(time.Duration(i)*time.Second))
			p.Spec.NodeName, p.Status.Phase = name, corev1.PodRunning
			cond := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(now.Add(-time.Hour))}
			switch text[len(hash):] {
			case "-":
				cond.Status = corev1.ConditionFalse
			case "~":
				p.DeletionTimestamp = &metav1.Time{Time: now}
			case "!":
				cond.Status, p.Status.Phase = corev1.ConditionFalse, corev1.PodFailed
			}
			p.Status.Conditions = []corev1.PodCondition{cond}
			s.Pods = append(s.Pods, p)
		}
	}
	return s
}

func steps(d Decision) string {
	var out []string
	for _, n := range d.Create {
		out = append(out, "+"+n)
	}
	for _, p := range d.Delete {
		out = append(out, "-"+p.Name)
	}
	return strings.Join(out, " ")
}

func TestSteps(t *testing.T) {
	byHand := newSet("1", "0")
	byHand.Spec.UpdateStrategy = appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}
	one, two, surge := newSet("1", "0"), newSet("2", "0"), newSet("0", "1")
	for _, c := range []struct {
		name, world, want string
		ds                *appsv1.DaemonSet
	}{
		{"every node gets one", "a b c:new", "+a +b", one},
		{"not while one is stopping there", "a:new~ b:new", "", one},
		{"one too many goes", "a:new,new-", "-a-new-", one},
		{"a taint that keeps out", "a/NoSchedule b:new", "", one},
		{"does not drive out", "a/NoSchedule:new b:new", "", one},
		{"a taint that drives out", "a/NoExecute:new b:new", "-a-new", one},
		{"a taint that prefers does nothing", "a/PreferNoSchedule b:new", "+a", one},
		{"one that has failed goes", "a:new! b:new", "-a-new!", one},
		{"updated one at a time", "a:old b:old c:old", "-a-old", one},
		{"two at a time", "a:old b:old c:old", "-a-old -b-old", two},
		{"percents are rounded up", "a:old b:old c:old", "-a-old -b-old", newSet("34%", "0")},
		{"waits for the new one", "a:new- b:old c:old", "", one},
		{"goes on", "a:new b:old c:old", "-b-old", one},
		{"an old one that is down costs nothing", "a:old b:old- c:old-", "-b-old- -c-old-", one},
		{"and counts", "a:old b:old-", "-b-old-", one},
		{"a stopping one counts", "a:old~ b:old", "", one},
		{"by hand nothing is deleted", "a:old b:old", "", byHand},
		{"by hand new nodes get one", "a:old b", "+b", byHand},
		{"surge adds beside", "a:old b:old", "+a", surge},
		{"surge waits", "a:old,new- b:old", "", surge},
		{"surge removes the old one when the new one is up", "a:old,new b:old", "-a-old", surge},
		{"surge removes an old one that is down", "a:old-,new- b:old", "-a-old-", surge},
		{"surge replaces one that is down at once", "a:old- b:old- c:old", "+a +b +c", surge},
		{"surge waits for one that is stopping", "a:old,new~ b:new", "", surge},
		{"surge keeps the old one where none may run until others are up", "a/NoSchedule:old b:new-", "", surge},
		{"surge lets it go then", "a/NoSchedule:old b:new", "-a-old", surge},
		{"two of one template in a surge", "a:old,new,new- b:new", "-a-new- -a-old", surge},
	} {
		if got := steps(Decide(world(c.ds, c.world), now)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

func TestBackOff(t *testing.T) {
	s := world(newSet("1", "0"), "a:new! b:new")
	s.BackOff["a"] = 3 * time.Second
	d := Decide(s, now)
	if got := steps(d); got != "" || d.Recheck != 3*time.Second {
		t.Errorf("in back-off: %q, recheck %s", got, d.Recheck)
	}
	delete(s.BackOff, "a")
	if d := Decide(s, now); len(d.Ended) != 1 || len(d.Delete) != 1 {
		t.Errorf("after it: %q", steps(d))
	}
}

func TestPodsOfMissingNodes(t *testing.T) {
	s := world(newSet("1", "0"), "a:new")
	lost := newPod(s.Set, "gone", "new")
	lost.Name = "lost"
	bound := lost.DeepCopy()
	bound.Name, bound.Spec.NodeName = "bound", "gone"
	s.Pods = append(s.Pods, lost, bound)
	if got := steps(Decide(s, now)); got != "-lost" {
		t.Errorf("%q, want only the pod that can never be bound to go", got)
	}
}

func TestEligibility(t *testing.T) {
	taint := func(key string, effect corev1.TaintEffect) corev1.Taint {
		return corev1.Taint{Key: key, Effect: effect}
	}
	for _, c := range []struct {
		name      string
		spec      corev1.PodSpec
		taints    []corev1.Taint
		run, stay bool
	}{
		{"plain", corev1.PodSpec{}, nil, true, true},
		{"selected", corev1.PodSpec{NodeSelector: map[string]string{"name": "n"}}, nil, true, true},
		{"not selected", corev1.PodSpec{NodeSelector: map[string]string{"name": "m"}}, nil, false, false},
		{"named otherwise", corev1.PodSpec{NodeName: "m"}, nil, false, false},
		{"cordoned", corev1.PodSpec{}, []corev1.Taint{taint(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)}, true, true},
		{"not ready", corev1.PodSpec{}, []corev1.Taint{taint(corev1.TaintNodeNotReady, corev1.TaintEffectNoExecute)}, true, true},
		{"unreachable", corev1.PodSpec{}, []corev1.Taint{taint(corev1.TaintNodeUnreachable, corev1.TaintEffectNoExecute)}, true, true},
		{"without network", corev1.PodSpec{}, []corev1.Taint{taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)}, false, true},
		{"without network on the host's", corev1.PodSpec{HostNetwork: true}, []corev1.Taint{taint(corev1.TaintNodeNetworkUnavailable, corev1.TaintEffectNoSchedule)}, true, true},
		{"tolerated", corev1.PodSpec{Tolerations: []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}}, []corev1.Taint{taint("k", corev1.TaintEffectNoExecute)}, true, true},
		{"required by affinity", corev1.PodSpec{Affinity: &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
			RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "name", Operator: corev1.NodeSelectorOpNotIn, Values: []string{"n"}}},
			}}},
		}}}, nil, false, false},
	} {
		ds := newSet("1", "0")
		ds.Spec.Template.Spec = c.spec
		if run, stay := newEligibility(ds).of(node("n", c.taints...)); run != c.run || stay != c.stay {
			t.Errorf("%s: run %v, stay %v", c.name, run, stay)
		}
	}
}

func TestNewPod(t *testing.T) {
	ds := newSet("1", "0")
	ds.Spec.Template.Spec.Tolerations = []corev1.Toleration{{Key: "mine"}, {Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}}
	p := newPod(ds, "n", "h")
	if nodeOf(p) != "n" || p.Spec.NodeName != "" || p.Labels["controller-revision-hash"] != "h" || p.Labels["app"] != "ds" || p.GenerateName != "ds-" || !metav1.IsControlledBy(p, ds) {
		t.Errorf("pod %+v", p)
	}
	var keys []string
	for _, tol := range p.Spec.Tolerations {
		keys = append(keys, strings.TrimPrefix(tol.Key, "node.kubernetes.io/"))
	}
	if want := []string{"mine", "not-ready", "unreachable", "disk-pressure", "memory-pressure", "pid-pressure", "unschedulable"}; !slices.Equal(keys, want) {
		t.Errorf("tolerations %q, want %q", keys, want)
	}
	if len(ds.Spec.Template.Labels) != 1 || ds.Spec.Template.Spec.Affinity != nil {
		t.Error("the template was changed")
	}
}

func TestStatus(t *testing.T) {
	ds := newSet("1", "0")
	ds.Spec.MinReadySeconds = 10
	s := world(ds, "a:new b:old c:new- d e/NoSchedule:old f:new")
	s.Pods[len(s.Pods)-1].Status.Conditions[0].LastTransitionTime = metav1.NewTime(now.Add(-time.Second))
	d := Decide(s, now)
	st := d.Status
	if st.DesiredNumberScheduled != 5 || st.CurrentNumberScheduled != 4 || st.NumberMisscheduled != 1 || st.NumberReady != 3 ||
		st.NumberAvailable != 2 || st.NumberUnavailable != 3 || st.UpdatedNumberScheduled != 3 || st.ObservedGeneration != 1 || st.CollisionCount != nil {
		t.Errorf("status %+v", st)
	}
	if d.Recheck != 9*time.Second {
		t.Errorf("recheck after %s, want 9s", d.Recheck)
	}
}
