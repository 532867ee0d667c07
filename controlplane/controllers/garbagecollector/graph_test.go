package garbagecollector

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func TestDecide(t *testing.T) {
	tests := map[string]struct {
		solid, absent, waiting int
		dependents             bool
		want                   action
	}{
		"no owners":                           {want: keep},
		"a solid owner":                       {solid: 1, want: keep},
		"one solid, one gone":                 {solid: 1, absent: 1, want: release},
		"one solid, one waiting":              {solid: 1, waiting: 1, want: release},
		"all gone":                            {absent: 2, want: remove},
		"all gone, with dependents":           {absent: 1, dependents: true, want: remove},
		"waiting, a leaf":                     {waiting: 1, want: remove},
		"waiting, with dependents of its own": {waiting: 1, dependents: true, want: removeForeground},
		"gone and waiting, with dependents":   {absent: 1, waiting: 1, dependents: true, want: removeForeground},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if got := decide(tt.solid, tt.absent, tt.waiting, tt.dependents); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

var (
	podKind  = schema.GroupKind{Kind: "Pod"}
	rsKind   = schema.GroupKind{Group: "apps", Kind: "ReplicaSet"}
	nodeKind = schema.GroupKind{Kind: "Node"}
)

func testGraph() *graph {
	return newGraph(func(gk schema.GroupKind) bool { return gk != nodeKind })
}

func object(name string, owners ...metav1.OwnerReference) *metav1.ObjectMeta {
	return &metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name), OwnerReferences: owners}
}

func owner(name string, blocks bool) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: name, UID: types.UID(name), BlockOwnerDeletion: ptr.To(blocks)}
}

func TestGraphFollowsOwners(t *testing.T) {
	g := testGraph()
	w := g.observe(podKind, object("pod", owner("rs", true)))
	if !slices.Contains(w.check, "rs") {
		t.Errorf("an owner that was only named is not looked at: %v", w.check)
	}
	if !g.nodes["rs"].virtual || g.nodes["rs"].namespace != "ns" {
		t.Fatalf("the owner is not virtual in its dependent's namespace: %+v", g.nodes["rs"].identity)
	}
	if got := g.reference(g.nodes["pod"], owner("rs", true)); got != unseen {
		t.Errorf("a virtual owner counts as %v", got)
	}
	g.observe(rsKind, object("rs"))
	if got := g.reference(g.nodes["pod"], owner("rs", true)); got != solid {
		t.Errorf("an owner that was seen counts as %v", got)
	}
	if w := g.observe(podKind, object("pod", owner("rs", true))); len(w.check) != 0 {
		t.Errorf("no change asks for %v", w.check)
	}

	deleting := object("rs")
	deleting.DeletionTimestamp, deleting.Finalizers = &metav1.Time{}, []string{metav1.FinalizerDeleteDependents}
	if w := g.observe(rsKind, deleting); !slices.Contains(w.check, "pod") || !slices.Contains(w.check, "rs") {
		t.Errorf("a foreground deletion looks only at %v", w.check)
	}
	if got := blocking(g.nodes["rs"]); !slices.Equal(got, []types.UID{"pod"}) {
		t.Errorf("blocked by %v", got)
	}
	if w := g.forget("pod"); !slices.Contains(w.check, "rs") {
		t.Errorf("the waiting owner is not looked at after its dependent has gone: %v", w.check)
	}
	if w := g.forget("rs"); len(g.nodes) != 0 || len(w.check) != 0 {
		t.Errorf("left over: %v, work %v", g.nodes, w.check)
	}
}

func TestGraphOwnerElsewhere(t *testing.T) {
	g := testGraph()
	other := object("rs")
	other.Namespace = "other"
	g.observe(rsKind, other)
	g.observe(podKind, object("pod", owner("rs", false)))
	if got := g.reference(g.nodes["pod"], owner("rs", false)); got != unseen {
		t.Errorf("an owner in another namespace counts as %v", got)
	}
}

func TestGraphOrphan(t *testing.T) {
	g := testGraph()
	g.observe(podKind, object("pod", owner("rs", false)))
	rs := object("rs")
	rs.DeletionTimestamp, rs.Finalizers = &metav1.Time{}, []string{metav1.FinalizerOrphanDependents}
	if w := g.observe(rsKind, rs); !slices.Equal(w.orphan, []types.UID{"rs"}) {
		t.Errorf("orphan work %v", w.orphan)
	}
	if got := g.reference(g.nodes["pod"], owner("rs", false)); got != solid {
		t.Errorf("dependents of an orphaning owner are collected: %v", got)
	}
}
