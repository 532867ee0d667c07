package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// silent accepts connections and never answers.
func silent(t *testing.T, addr string) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			context.AfterFunc(ctx, func() { conn.Close() })
		}
	}()
	stop = func() { l.Close(); cancel() }
	t.Cleanup(stop)
	return stop
}

// TestRegistryDown deploys from a registry that refuses connections, then says
// nothing, then works: what runs is not touched, the status tells of it, and the
// commit deploys by itself in the end.
func TestRegistryDown(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "registrydown")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()

	r := newRepo(t, c)
	r.add(ns, "shop")
	good := r.commit("good", shop{tag: "v1", message: "hello"}.files())
	r.deploy()
	before := c.awaitPods(t, ns, "", "it is Ready", func(p []*corev1.Pod) bool { return len(p) == 1 && allReady(p) })[0]
	bad := r.commit("from elsewhere", shop{image: addr + "/test/web:v1", message: "from elsewhere"}.files())
	contains(t, r.push(), addr, "registry is unavailable", "what ran before runs on", "next try in 5s")

	stop := silent(t, addr)
	failed := func(n int32, what string) *v1alpha1.SyncResult {
		t.Helper()
		app := c.awaitApp(t, ns, "shop", what, func(a *v1alpha1.Application) bool {
			ls := a.Status.LastSync
			return ls != nil && ls.Commit == bad && ls.Failures >= n && strings.Contains(ls.Message, what)
		})
		ls := app.Status.LastSync
		contains(t, ls.Message, addr)
		if app.Status.DeployedCommit != good || app.Status.Phase != v1alpha1.PhaseFailed || ls.RetryAt == nil {
			t.Fatalf("status does not tell of the failure: %+v", app.Status)
		}
		if pause, want := ls.RetryAt.Sub(ls.FinishedAt.Time), 5*time.Second<<(n-1); pause < want-2*time.Second {
			t.Errorf("after failure %d the next try is due in %s, want about %s", n, pause, want)
		}
		return ls
	}
	failed(1, "connection refused")
	failed(2, "no answer within")
	contains(t, c.ok(t, "status", "shop", "-n", ns), "Failed", addr, "next try in")
	eventually(t, "events name the registry and the next try", func() error {
		events, err := c.k.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "reason=DeployFailed"})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if strings.Contains(e.Message, addr) && strings.Contains(e.Message, "next try in 10s") {
				return nil
			}
		}
		return fmt.Errorf("%d events, none of which does", len(events.Items))
	})
	c.answers(t, ns, "web", "msg=hello")
	now, err := c.k.CoreV1().Pods(ns).Get(t.Context(), before.Name, metav1.GetOptions{})
	if err != nil || lifeOf(now) != lifeOf(before) {
		t.Errorf("what ran was touched: %+v before, %+v now, %v", lifeOf(before), lifeOf(now), err)
	}

	stop()
	l, err = net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: registry.New()}
	go func() { _ = srv.Serve(l) }()
	defer srv.Close()
	img, err := image("VERSION=elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(addr + "/test/web:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	c.awaitApp(t, ns, "shop", "the retry deployed it", func(a *v1alpha1.Application) bool {
		return a.Status.DeployedCommit == bad && a.Status.Phase == v1alpha1.PhaseReady
	})
	c.answers(t, ns, "web", "elsewhere from")
}
