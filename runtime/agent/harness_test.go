package agent

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	imgv1 "github.com/google/go-containerregistry/pkg/v1"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/container"
)

// innerNodeIP is the node's address in tests that have a network of their own.
const innerNodeIP = "10.41.0.11"

// waitLimit bounds every wait of the tests, on a busy machine.
const waitLimit = 60 * time.Second

// testNode is an agent against a real API server.
type testNode struct {
	t      testing.TB
	plane  *apiservertest.ControlPlane
	admin  kubernetes.Interface
	config *rest.Config
	name   string
	cfg    Config
	agent  *Agent
	stop   func()
	// root is the node itself where this is a view of it for a subtest.
	root *testNode
}

// in returns n with failures going to a subtest.
func (n *testNode) in(t testing.TB) *testNode {
	sub := *n
	sub.t, sub.root = t, n
	return &sub
}

// newTestNode prepares a node on plane; start runs its agent.
func newTestNode(t testing.TB, plane *apiservertest.ControlPlane, name string, rt container.Runtime, images registry.Puller, network PodNetwork) *testNode {
	t.Helper()
	n := &testNode{t: t, plane: plane, name: name, config: plane.Admin}
	n.admin = kubernetes.NewForConfigOrDie(plane.Admin)
	pair, err := plane.CA.Issue(pki.NodeClient(name))
	n.must(err)
	client := plane.CA.RESTConfig(plane.URL, pair)
	client.QPS, client.Burst = -1, -1
	n.cfg = Config{
		NodeName: name, NodeIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		Client: kubernetes.NewForConfigOrDie(client), Runtime: rt, Images: images, Network: network,
		DataDir: t.TempDir(), ClientCA: plane.CA.Pool(),
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
	serving, err := plane.CA.Issue(pki.NodeServer(name, "127.0.0.1", innerNodeIP))
	n.must(err)
	cert, err := serving.TLS()
	n.must(err)
	n.cfg.ServingCert = func() *tls.Certificate { return &cert }
	return n
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// start runs an agent until the test ends or n.stop is called.
func (n *testNode) start() {
	n.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(n.cfg.NodeIPs[0].String(), "0"))
	n.must(err)
	n.cfg.Listener = l
	a, err := New(n.cfg)
	n.must(err)
	n.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	stopped := false
	n.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				n.t.Errorf("agent ended with: %v", err)
			}
		case <-time.After(waitLimit):
			n.t.Errorf("agent does not end")
		}
	}
	n.t.Cleanup(n.stop)
}

// ready starts the agent, gives the node a podCIDR as the controllers do, and
// waits until it is Ready.
func (n *testNode) ready() {
	n.t.Helper()
	n.start()
	<-n.agent.firstList // by then Run has read what tests change of its configuration
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	w, err := n.admin.CoreV1().Nodes().Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", n.name).String()})
	n.must(err)
	defer w.Stop()
	for ev := range w.ResultChan() {
		node, ok := ev.Object.(*v1.Node)
		if !ok {
			continue
		}
		if node.Spec.PodCIDR == "" {
			node.Spec.PodCIDR, node.Spec.PodCIDRs = "10.42.7.0/24", []string{"10.42.7.0/24"}
			n.admin.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{})
			continue
		}
		if int(node.Status.DaemonEndpoints.KubeletEndpoint.Port) != n.cfg.Listener.Addr().(*net.TCPAddr).Port {
			continue // the status of the agent before this one
		}
		for _, c := range node.Status.Conditions {
			if c.Type == v1.NodeReady && c.Status == v1.ConditionTrue {
				return
			}
		}
	}
	n.t.Fatal("node does not become Ready")
}

func (n *testNode) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// namespace makes one for a test.
func (n *testNode) namespace(name string) string {
	n.t.Helper()
	_, err := n.admin.CoreV1().Namespaces().Create(context.Background(), &v1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	n.must(err)
	return name
}

// pod makes a pod bound to the node.
func (n *testNode) pod(ns, name string, adjust func(*v1.Pod)) *v1.Pod {
	n.t.Helper()
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name}, Spec: v1.PodSpec{
		NodeName: n.name, AutomountServiceAccountToken: new(bool),
		Containers: []v1.Container{{Name: "main", Image: "app:v1"}},
	}}
	if adjust != nil {
		adjust(p)
	}
	p, err := n.admin.CoreV1().Pods(ns).Create(context.Background(), p, metav1.CreateOptions{})
	n.must(err)
	return p
}

// until waits until the pod satisfies ok, and returns it. A pod that is gone is nil.
func (n *testNode) until(ns, name, what string, ok func(*v1.Pod) bool) *v1.Pod {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), waitLimit)
	defer cancel()
	opts := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String()}
	list, err := n.admin.CoreV1().Pods(ns).List(ctx, opts)
	n.must(err)
	var last *v1.Pod
	if len(list.Items) > 0 {
		last = &list.Items[0]
	}
	if ok(last) {
		return last
	}
	opts.ResourceVersion = list.ResourceVersion
	w, err := n.admin.CoreV1().Pods(ns).Watch(ctx, opts)
	n.must(err)
	defer w.Stop()
	for ev := range w.ResultChan() {
		p, isPod := ev.Object.(*v1.Pod)
		if !isPod {
			continue
		}
		if last = p; ev.Type == watch.Deleted {
			last = nil
		}
		if ok(last) {
			return last
		}
	}
	text := "gone"
	if last != nil {
		text = fmt.Sprintf("%+v", last.Status)
	}
	n.t.Fatalf("pod %s/%s: not reached: %s; status is %s", ns, name, what, text)
	return nil
}

func (n *testNode) untilReady(ns, name string) *v1.Pod {
	n.t.Helper()
	return n.until(ns, name, "Ready", podReady)
}

func podReady(p *v1.Pod) bool {
	if p == nil {
		return false
	}
	c := findCondition(p.Status.Conditions, v1.PodReady)
	return c != nil && c.Status == v1.ConditionTrue
}

func gone(p *v1.Pod) bool { return p == nil }

// eventually waits for something that no watch tells of.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(waitLimit)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not reached: %s", what)
		}
	}
}

// told waits for an event of a namespace.
func (n *testNode) told(ns, kind, reason, message string) {
	n.t.Helper()
	eventually(n.t, "an event says "+message, func() bool {
		events, err := n.admin.CoreV1().Events(ns).List(context.Background(), metav1.ListOptions{})
		n.must(err)
		return slices.ContainsFunc(events.Items, func(e v1.Event) bool {
			return e.Type == kind && e.Reason == reason && strings.Contains(e.Message, message)
		})
	})
}

func (n *testNode) deletePod(ns, name string, grace int64) {
	n.t.Helper()
	n.must(n.admin.CoreV1().Pods(ns).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace}))
}

// waitingReason is the reason for which the first container waits.
func waitingReason(p *v1.Pod) string {
	if p == nil || len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].State.Waiting == nil {
		return ""
	}
	return p.Status.ContainerStatuses[0].State.Waiting.Reason
}

var defaultImage = imgv1.Config{Entrypoint: []string{"/app"}, Cmd: []string{"serve"}, Env: []string{"PATH=/bin", "COLOUR=image"}}
