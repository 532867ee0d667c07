package history

import (
	"context"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
	"k8s.io/client-go/tools/cache"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// TestRevisions goes through the life of revisions in a real API server, with a
// cache that is only as fresh as the test makes it.
func TestRevisions(t *testing.T) {
	client, err := kubernetes.NewForConfig(apiservertest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	api := client.AppsV1().ControllerRevisions("default")
	list := func() []*appsv1.ControllerRevision {
		t.Helper()
		l, err := api.List(ctx, metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var out []*appsv1.ControllerRevision
		for i := range l.Items {
			out = append(out, &l.Items[i])
		}
		return out
	}
	indexer := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	r := NewRevisions(client, appslisters.NewControllerRevisionLister(indexer))
	ensure := func(o Owner, owned []*appsv1.ControllerRevision) (*appsv1.ControllerRevision, int32) {
		t.Helper()
		rev, collisions, err := r.Ensure(ctx, o, owned)
		if err != nil {
			t.Fatal(err)
		}
		return rev, collisions
	}

	first, _ := ensure(owner("v1"), nil)
	if again, n := ensure(owner("v1"), nil); again.UID != first.UID || n != 0 {
		t.Errorf("an old cache made another revision: %s, %d collisions", again.Name, n)
	}
	second, _ := ensure(owner("v2"), list())
	if second.Revision != 2 {
		t.Errorf("the second revision is number %d", second.Revision)
	}
	if kept, _ := ensure(owner("v2"), list()); kept.UID != second.UID || kept.ResourceVersion != second.ResourceVersion {
		t.Error("a revision was written for nothing: what is stored does not compare equal")
	}
	if back, _ := ensure(owner("v1"), list()); back.UID != first.UID || back.Revision != 3 {
		t.Errorf("going back gives %s number %d", back.Name, back.Revision)
	}

	other := owner("v3")
	other.Object = &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: "default", UID: "another"}}
	taken, _ := ensure(other, nil)
	if third, n := ensure(owner("v3"), list()[:2]); n != 1 || third.UID == taken.UID {
		t.Errorf("a name that is taken: %s, %d collisions", third.Name, n)
	}

	orphan := taken.DeepCopy()
	orphan.OwnerReferences = nil
	if _, err := api.Update(ctx, orphan, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, rev := range list() {
		if err := indexer.Add(rev); err != nil {
			t.Fatal(err)
		}
	}
	mine := owner("v1")
	mine.Selector = labels.SelectorFromSet(labels.Set{"app": "db"})
	owned, err := r.Owned(ctx, mine, func(context.Context) (metav1.Object, error) { return mine.Object, nil })
	if err != nil || len(owned) != 4 {
		t.Fatalf("%d revisions are owned, want 4 with the orphan: %v", len(owned), err)
	}
	limit := int32(1)
	mine.Limit = &limit
	if err := r.Truncate(ctx, mine, list(), func(rev *appsv1.ControllerRevision) bool { return rev.UID == first.UID }); err != nil {
		t.Fatal(err)
	}
	if left := list(); len(left) != 2 {
		t.Errorf("%d revisions are left, want the one in use and one more", len(left))
	}
}
