package reconciler

import (
	"context"
	"io/fs"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/gitsource"
)

// clockSource notes when it is asked; its newest commit is the number of times.
type clockSource struct{ looks []time.Time }

func (s *clockSource) Fetch(context.Context, gitsource.Location) (gitsource.Commit, error) {
	s.looks = append(s.looks, time.Now().UTC())
	return gitsource.Commit{SHA: string(rune('a' + len(s.looks) - 1))}, nil
}

func (s *clockSource) Commit(context.Context, gitsource.Location, string) (gitsource.Commit, error) {
	return gitsource.Commit{}, nil
}

func (s *clockSource) Files(context.Context, gitsource.Location, string) (fs.FS, error) {
	return nil, fs.ErrNotExist
}

func (s *clockSource) IsAncestor(context.Context, gitsource.Location, string, string) (bool, error) {
	return false, nil
}

func (s *clockSource) Keep(context.Context, gitsource.Location, []string) error { return nil }

// TestTriggersOnTime runs the loop on a clock that jumps: looks come at the times
// of the schedule, in its time zone, and at the interval, and at no other.
func TestTriggersOnTime(t *testing.T) {
	day := func(d, h, m int) time.Time { return time.Date(2000, 1, d, h, m, 0, 0, time.UTC) }
	for _, tt := range []struct {
		name string
		sync v1alpha1.Sync
		url  string
		days int
		want []time.Time // after the one at the start
	}{
		{name: "schedule", url: "https://git.example.com/shop.git", days: 4,
			// 9:30 and 17:30 in São Paulo, two hours behind UTC in January 2000; the
			// clock starts on a Saturday.
			sync: v1alpha1.Sync{Schedule: "30 9,17 * * MON-FRI", TimeZone: "America/Sao_Paulo", Interval: &metav1.Duration{}},
			want: []time.Time{day(3, 11, 30), day(3, 19, 30), day(4, 11, 30), day(4, 19, 30)}},
		{name: "interval", url: "https://git.example.com/shop.git", days: 1,
			sync: v1alpha1.Sync{Interval: &metav1.Duration{Duration: 8 * time.Hour}},
			want: []time.Time{day(1, 8, 0), day(1, 16, 0), day(2, 0, 0)}},
		{name: "both", url: "https://git.example.com/shop.git", days: 1,
			sync: v1alpha1.Sync{Interval: &metav1.Duration{Duration: 10 * time.Hour}, Schedule: "0 12 * * *"},
			want: []time.Time{day(1, 10, 0), day(1, 12, 0), day(1, 22, 0)}},
		{name: "schedule of a repository that is pushed to", days: 1,
			sync: v1alpha1.Sync{Interval: &metav1.Duration{Duration: time.Minute}, Schedule: "0 12 * * *"},
			want: []time.Time{day(1, 12, 0)}},
		{name: "neither", url: "https://git.example.com/shop.git", days: 30, sync: v1alpha1.Sync{Interval: &metav1.Duration{}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				app := &v1alpha1.Application{
					TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.SchemeGroupVersion.String(), Kind: "Application"},
					ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"},
					Spec:       v1alpha1.ApplicationSpec{Source: v1alpha1.Source{RepoURL: tt.url, Ref: "main"}, Sync: tt.sync},
					// Held, so that commits are seen and not deployed.
					Status: v1alpha1.ApplicationStatus{HeldAt: &v1alpha1.Hold{Commit: "z", Reason: v1alpha1.HeldByUser}},
				}
				m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(app)
				if err != nil {
					t.Fatal(err)
				}
				u := &unstructured.Unstructured{Object: m}
				d := dynamicfake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{applications: "ApplicationList"}, u)
				source := &clockSource{}
				r := New(Config{Dynamic: d, Discovery: fake.NewClientset().Discovery(), Events: &record.FakeRecorder{}, Source: source})
				if err := r.apps.GetStore().Add(u); err != nil {
					t.Fatal(err)
				}
				go func() {
					for r.next(t.Context()) {
					}
				}()
				r.queue.Add(Key("default", "shop"))
				start := time.Now()
				time.Sleep(time.Duration(tt.days)*24*time.Hour + time.Minute)
				synctest.Wait()
				want := append([]time.Time{start.UTC()}, tt.want...)
				// A wake-up may be a moment late, never early.
				if !slices.EqualFunc(source.looks, want, func(got, want time.Time) bool { return !got.Before(want) && got.Sub(want) < time.Second }) {
					t.Errorf("looked at\n%s\nwant\n%s", source.looks, want)
				}
				live, err := d.Resource(applications).Namespace("default").Get(t.Context(), "shop", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if got, _, _ := unstructured.NestedString(live.Object, "status", "observedCommit"); got != string(rune('a'+len(want)-1)) {
					t.Errorf("the status has commit %q after %d looks", got, len(want))
				}
				r.queue.ShutDown()
			})
		})
	}
}
