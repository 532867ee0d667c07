package scheduler

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"
)

// TestRunPreempts: the loop tells an important pod which node is cleared for it and
// the other why it goes, deletes that, and binds the important one to its place.
func TestRunPreempts(t *testing.T) {
	low := pod("low", cpu("1"), bound("a"))
	high := pod("high", cpu("1"), priority(10))
	client := fake.NewClientset(node("a", "1", "1Gi"), low, high)
	did := make(chan string, 16)
	note := func(verb, resource string, tell func(clienttesting.Action) string) {
		client.PrependReactor(verb, resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
			did <- tell(a)
			return false, nil, nil
		})
	}
	note("patch", "pods", func(a clienttesting.Action) string {
		p := a.(clienttesting.PatchAction)
		return "patch " + p.GetName() + " " + string(p.GetPatch())
	})
	note("delete", "pods", func(a clienttesting.Action) string { return "delete " + a.(clienttesting.DeleteAction).GetName() })
	client.PrependReactor("create", "pods", func(a clienttesting.Action) (bool, runtime.Object, error) {
		b := a.(clienttesting.CreateAction).GetObject().(*corev1.Binding)
		did <- "bind " + b.Name + " to " + b.Target.Name
		return true, b, nil
	})
	f := informers.NewSharedInformerFactory(client, 0)
	s := New(client, f, record.NewFakeRecorder(16))
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	f.Start(ctx.Done())
	go func() { over <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-over; err != nil {
			t.Error(err)
		}
		f.Shutdown()
	}()
	for _, want := range [][]string{
		{"patch high", `"nominatedNodeName":"a"`, "0/1 nodes are available: 1 Insufficient cpu (needs 1, 0 free).", `"reason":"Unschedulable"`},
		{"patch low", `"type":"DisruptionTarget"`, `"reason":"PreemptionByScheduler"`, "default-scheduler: preempting to accommodate a higher priority pod"},
		{"delete low"},
		{"bind high to a"},
	} {
		select {
		case got := <-did:
			for _, part := range want {
				if !strings.Contains(got, part) {
					t.Fatalf("got %q, want %q in it", got, part)
				}
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%q did not happen", want[0])
		}
	}
}
