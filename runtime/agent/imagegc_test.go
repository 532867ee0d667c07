package agent

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/registry"
)

func TestImageGCPolicy(t *testing.T) {
	p := ImageGCPolicy{}
	if err := p.complete(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ capacity, available, want int64 }{
		{1000, 160, 0}, {1000, 150, 50}, {1000, 0, 200}, {1000, 1000, 0}, {0, 0, 0},
	} {
		if got := p.excess(tt.capacity, tt.available); got != tt.want {
			t.Errorf("%d of %d free: to free %d, want %d", tt.available, tt.capacity, got, tt.want)
		}
	}
	off := ImageGCPolicy{HighThresholdPercent: 100}
	if err := off.complete(); err != nil || off.excess(1000, 0) != 0 {
		t.Errorf("at 100 %%: %d, %v", off.excess(1000, 0), err)
	}
	if err := (&ImageGCPolicy{HighThresholdPercent: 50, LowThresholdPercent: 60}).complete(); err == nil {
		t.Error("a low threshold above the high one is taken")
	}
	ago := func(d time.Duration) time.Time { return t0.Add(-d) }
	image := func(digest string, pulled time.Duration) registry.ImageInfo {
		return registry.ImageInfo{Digest: digest, PulledAt: ago(pulled)}
	}
	images := []registry.ImageInfo{
		image("running", time.Hour), image("fresh", time.Minute), image("just used", time.Hour),
		image("old", 2*time.Hour), image("older", 3*time.Hour), image("used", 4*time.Hour),
	}
	got := p.candidates(images, map[string]bool{"running": true}, map[string]time.Time{"just used": ago(time.Minute), "used": ago(time.Hour)}, t0)
	if want := []string{"older", "old", "used"}; !slices.Equal(got, want) {
		t.Errorf("candidates %q, want %q", got, want)
	}
}

// fakeStore holds images of 100 bytes each on a disk of 1000.
type fakeStore struct{ images []registry.ImageInfo }

func (s *fakeStore) Images() []registry.ImageInfo { return s.images }

func (s *fakeStore) Prune(keep func(string) bool) error {
	s.images = slices.DeleteFunc(s.images, func(i registry.ImageInfo) bool { return !keep(i.Digest) })
	return nil
}

func (s *fakeStore) space(used int64) func(string) (int64, int64, error) {
	return func(string) (int64, int64, error) { return 1000, 1000 - used - 100*int64(len(s.images)), nil }
}

func (s *fakeStore) has(digest string) bool {
	return slices.ContainsFunc(s.images, func(i registry.ImageInfo) bool { return i.Digest == digest })
}

// TestImageGC removes what no container was made from, and says so when that is not
// enough.
func TestImageGC(t *testing.T) {
	plane := apiservertest.StartWith(t, nil)
	rt := newFakeRuntime()
	n := newTestNode(t, plane, "node-g", rt, &fakePuller{config: defaultImage}, &fakeNetwork{})
	const used = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	long := time.Now().Add(-time.Hour)
	store := &fakeStore{images: []registry.ImageInfo{{Digest: used, PulledAt: long.Add(-time.Hour)}, {Digest: "a", PulledAt: long}, {Digest: "b", PulledAt: long.Add(time.Second)}}}
	n.ready()
	ns := n.namespace("gc")
	n.pod(ns, "runs", nil)
	n.untilReady(ns, "runs")
	if busy, err := n.agent.collectImages(store, store.space(500)); busy || err != nil || len(store.images) != 3 {
		t.Errorf("below the threshold: %v, %v, %+v", busy, err, store.images)
	}
	if _, err := n.agent.collectImages(store, store.space(600)); err != nil || store.has("a") || !store.has("b") || !store.has(used) {
		t.Errorf("above it: %v, %+v", err, store.images)
	}
	n.agent.images.pulls.RLock()
	if busy, err := n.agent.collectImages(store, store.space(700)); !busy || err != nil || !store.has("b") {
		t.Errorf("during a pull: %v, %v, %+v", busy, err, store.images)
	}
	n.agent.images.pulls.RUnlock()
	_, err := n.agent.collectImages(store, store.space(850))
	if err == nil || !strings.Contains(err.Error(), "Attempted to free 250 bytes, but only found 100 bytes eligible to free.") || store.has("b") || !store.has(used) {
		t.Errorf("not enough: %v, %+v", err, store.images)
	}
	eventually(t, "the event", func() bool {
		list, err := n.admin.CoreV1().Events(metav1.NamespaceDefault).List(context.Background(), metav1.ListOptions{})
		n.must(err)
		return slices.ContainsFunc(list.Items, func(e v1.Event) bool {
			return e.Reason == "FreeDiskSpaceFailed" && e.InvolvedObject.Kind == "Node" && e.InvolvedObject.Name == "node-g"
		})
	})
}
