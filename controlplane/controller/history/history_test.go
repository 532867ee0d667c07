package history

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

func template(image string) *corev1.PodTemplateSpec {
	return &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "db"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: image}}},
	}
}

func owner(image string) Owner {
	return Owner{
		Object:   &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default", UID: "set", Annotations: map[string]string{"kubernetes.io/change-cause": image}}},
		Kind:     appsv1.SchemeGroupVersion.WithKind("StatefulSet"),
		Selector: labels.Everything(), Template: template(image), HashLabel: "hash",
	}
}

func TestData(t *testing.T) {
	const want = `{"spec":{"template":{"$patch":"replace","metadata":{"labels":{"app":"db"}},"spec":{"containers":[{"image":"v1","name":"db","resources":{}}]}}}}`
	if got := string(Data(template("v1"))); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	step := Next(owner("v1"), nil)
	got, err := Template(step.Revision)
	if err != nil || got.Spec.Containers[0].Image != "v1" || got.Labels["app"] != "db" {
		t.Errorf("template %+v %v", got, err)
	}
}

// TestNext: a template that comes back takes its revision along to the top.
func TestNext(t *testing.T) {
	var all []*appsv1.ControllerRevision
	numbers := func() (out []int64) {
		for _, r := range all {
			out = append(out, r.Revision)
		}
		return out
	}
	for _, c := range []struct {
		image  string
		create bool
		want   []int64
	}{
		{"v1", true, []int64{1}},
		{"v1", false, []int64{1}},
		{"v2", true, []int64{1, 2}},
		{"v3", true, []int64{1, 2, 3}},
		{"v1", false, []int64{4, 2, 3}},
		{"v1", false, []int64{4, 2, 3}},
		{"v3", false, []int64{4, 2, 5}},
	} {
		step := Next(owner(c.image), all)
		if step.Create != c.create || (step.Create && step.Renumber) {
			t.Errorf("%s after %v: %+v", c.image, numbers(), step)
		}
		if step.Create {
			all = append(all, step.Revision)
		} else {
			i := slices.IndexFunc(all, func(r *appsv1.ControllerRevision) bool { return r.Name == step.Revision.Name })
			if !step.Renumber && all[i] != step.Revision {
				t.Errorf("%s: the revision was copied for nothing", c.image)
			}
			all[i] = step.Revision
		}
		if !slices.Equal(numbers(), c.want) {
			t.Errorf("%s: revisions %v, want %v", c.image, numbers(), c.want)
		}
	}
}

func TestNames(t *testing.T) {
	a := Next(owner("v1"), nil).Revision
	if !strings.HasPrefix(a.Name, "db-") || a.Labels["hash"] != strings.TrimPrefix(a.Name, "db-") || a.Labels["app"] != "db" ||
		a.Annotations["kubernetes.io/change-cause"] != "v1" || a.OwnerReferences[0].UID != "set" {
		t.Errorf("revision %+v", a.ObjectMeta)
	}
	again := owner("v1")
	again.Collisions = 1
	if b := Next(again, nil).Revision; b.Name == a.Name {
		t.Error("another collision count should give another name")
	}
}

func TestExcess(t *testing.T) {
	var all []*appsv1.ControllerRevision
	for _, n := range []int64{3, 1, 5, 2, 4} {
		all = append(all, &appsv1.ControllerRevision{ObjectMeta: metav1.ObjectMeta{Name: string(rune('0' + n))}, Revision: n})
	}
	inUse := func(r *appsv1.ControllerRevision) bool { return r.Revision == 1 || r.Revision == 5 }
	for limit, want := range map[int32]string{0: "234", 1: "23", 2: "2", 3: "", 10: ""} {
		o, got := owner("v1"), ""
		o.Limit = &limit
		for _, r := range Excess(o, all, inUse) {
			got += r.Name
		}
		if got != want {
			t.Errorf("limit %d: deletes %q, want %q", limit, got, want)
		}
	}
	if Excess(owner("v1"), all, inUse) != nil {
		t.Error("without a limit all are kept")
	}
}
