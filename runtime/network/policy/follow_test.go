package policy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	ktesting "k8s.io/client-go/testing"
)

func apiPod(name, node, ip string, change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), Labels: map[string]string{"app": name}, Annotations: map[string]string{"large": "yes"}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "x", Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 8080}, {ContainerPort: 1}, {Name: "dns", Protocol: corev1.ProtocolUDP, ContainerPort: 53},
		}}}},
		Status: corev1.PodStatus{PodIP: ip, Phase: corev1.PodRunning},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

// TestSnapshot: which pods policies are about, and with which address.
func TestSnapshot(t *testing.T) {
	phase := func(ph corev1.PodPhase) func(*corev1.Pod) { return func(p *corev1.Pod) { p.Status.Phase = ph } }
	relabelled := apiPod("moved", "here", "10.42.1.9", func(p *corev1.Pod) { p.Labels["app"] = "new" })
	here := started{}
	here.add(apiPod("gone", "here", ""), []netip.Addr{netip.MustParseAddr("10.42.1.3")})
	here.add(apiPod("fresh", "here", ""), []netip.Addr{netip.MustParseAddr("10.42.1.3")}) // has the address of one that is gone
	here.add(apiPod("moved", "here", ""), []netip.Addr{netip.MustParseAddr("10.42.1.4")})
	s := snapshot("here", here, nil, []*corev1.Pod{
		apiPod("local", "here", "10.42.1.2"), apiPod("remote", "there", "10.42.2.2"), relabelled,
		apiPod("former", "here", "10.42.1.3"), apiPod("waits", "here", ""),
		apiPod("done", "there", "10.42.2.3", phase(corev1.PodSucceeded)), apiPod("failed", "there", "10.42.2.4", phase(corev1.PodFailed)),
		apiPod("host", "there", "10.41.0.12", func(p *corev1.Pod) { p.Spec.HostNetwork = true }),
	}, []*corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "shop", Labels: map[string]string{"team": "a"}}}})
	got := map[string]string{}
	for _, p := range s.Pods {
		got[p.Name] = fmt.Sprintf("%s %t %s %v", p.IPs[0], p.Local, p.Labels["app"], p.Ports)
	}
	ports := fmt.Sprint([]Port{{"http", TCP, 8080}, {"dns", UDP, 53}})
	want := map[string]string{
		"local": "10.42.1.2 true local " + ports, "remote": "10.42.2.2 false remote " + ports,
		"fresh": "10.42.1.3 true fresh " + ports, "moved": "10.42.1.4 true new " + ports,
	}
	if !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if s.Namespaces["shop"]["team"] != "a" {
		t.Error(s.Namespaces)
	}
}

// TestReduce: what is kept says the same to policies.
func TestReduce(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	full := apiPod("a", "here", "10.42.1.2", func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{
			{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "proxy", ContainerPort: 15001}}}, {Ports: []corev1.ContainerPort{{Name: "init", ContainerPort: 1}}},
		}
	})
	obj, err := Reduce(full)
	if err != nil {
		t.Fatal(err)
	}
	small := obj.(*corev1.Pod)
	ips := []netip.Addr{netip.MustParseAddr("10.42.1.2")}
	if a, b := fmt.Sprint(*podOf(full, ips, true)), fmt.Sprint(*podOf(small, ips, true)); a != b || len(podOf(full, ips, true).Ports) != 3 {
		t.Errorf("%s, reduced %s", a, b)
	}
	if small.Annotations != nil || small.Spec.Containers[0].Image != "" || small.UID != full.UID {
		t.Error(small)
	}
}

// recorder is a kernel that remembers.
type recorder struct {
	mu      sync.Mutex
	applied []Rules
	held    []netip.Addr
	err     error
	changed chan struct{}
}

func newRecorder() *recorder { return &recorder{changed: make(chan struct{}, 100)} }

func (r *recorder) Apply(rules Rules) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.applied = append(r.applied, rules)
	r.changed <- struct{}{}
	return r.err
}

func (r *recorder) Hold(ips []netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = append(r.held, ips...)
	return r.err
}

func (r *recorder) latest() Rules {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.applied) == 0 {
		return Rules{}
	}
	return r.applied[len(r.applied)-1]
}

// await waits until what was applied last is as it should be.
func (r *recorder) await(t *testing.T, what string, cond func(Rules) bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		r.mu.Lock()
		ok := len(r.applied) > 0 && cond(r.applied[len(r.applied)-1])
		r.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-r.changed:
		case <-deadline:
			t.Fatalf("%s: applied last: %+v", what, r.latest())
		}
	}
}

func heldIn(r Rules) []string {
	var out []string
	for ip := range r.Ingress.Groups {
		out = append(out, ip.String())
	}
	slices.Sort(out)
	return out
}

func holds(ips ...string) func(Rules) bool {
	return func(r Rules) bool { return slices.Equal(heldIn(r), ips) }
}

func listsPods(c *fake.Clientset) bool {
	return slices.ContainsFunc(c.Actions(), func(a ktesting.Action) bool { return a.GetResource().Resource == "pods" && a.GetVerb() == "watch" })
}

func run(t *testing.T, f *Follower) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}

func TestFollower(t *testing.T) {
	k, c := newRecorder(), fake.NewClientset(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}}, apiPod("old", "here", "10.42.1.2"), apiPod("remote", "there", "10.42.2.2"))
	f := newFollower(c, "here", k)
	early, adopted := netip.MustParseAddr("10.42.1.3"), netip.MustParseAddr("10.42.1.4")
	if err := f.Starts(apiPod("early", "here", ""), []netip.Addr{early}); err != nil {
		t.Fatal(err)
	}
	f.Runs(apiPod("adopted", "here", ""), []netip.Addr{adopted})
	if !slices.Equal(k.held, []netip.Addr{early}) || len(k.applied) > 0 {
		t.Errorf("before anything is known: held %v, applied %v", k.held, k.applied)
	}

	run(t, f)
	k.await(t, "no policy", holds())
	if listsPods(c) {
		t.Error("pods are followed without a policy")
	}
	policies := c.NetworkingV1().NetworkPolicies("shop")
	deny, err := policies.Create(t.Context(), manifest(t, `{metadata: {name: deny, namespace: shop}, spec: {podSelector: {}, policyTypes: [Ingress]}}`), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	k.await(t, "the first policy", holds("10.42.1.2", "10.42.1.3", "10.42.1.4"))

	late := netip.MustParseAddr("10.42.1.5")
	if err := f.Starts(apiPod("late", "here", ""), []netip.Addr{late}); err != nil {
		t.Fatal(err)
	}
	if !holds("10.42.1.2", "10.42.1.3", "10.42.1.4", "10.42.1.5")(k.latest()) {
		t.Error("a pod has started without its policy:", heldIn(k.latest()))
	}
	f.Ends("uid-late")
	k.await(t, "the pod has ended", holds("10.42.1.2", "10.42.1.3", "10.42.1.4"))

	deny.Spec.PodSelector.MatchLabels = map[string]string{"app": "blue"}
	if _, err := policies.Update(t.Context(), deny, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.await(t, "the policy selects none", holds())
	if _, err := c.CoreV1().Pods("shop").Update(t.Context(), apiPod("old", "here", "10.42.1.2", func(p *corev1.Pod) { p.Labels["app"] = "blue" }), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.await(t, "the pod has another label", holds("10.42.1.2"))

	k.mu.Lock()
	k.err = errors.New("busy")
	k.mu.Unlock()
	if err := f.Starts(apiPod("late", "here", ""), []netip.Addr{late}); err == nil {
		t.Error("a pod starts although its policies could not be enforced")
	}
	k.mu.Lock()
	k.err = nil
	k.mu.Unlock()
	if err := policies.Delete(t.Context(), "deny", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	k.await(t, "the last policy is gone", holds())
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.peers != nil {
		t.Error("pods are followed without a policy")
	}
}

// TestHeldUntilPeersAreKnown: there are policies, and the pods that they name are not
// known yet.
func TestHeldUntilPeersAreKnown(t *testing.T) {
	k := newRecorder()
	c := fake.NewClientset(manifest(t, `{metadata: {name: deny, namespace: shop}, spec: {podSelector: {matchLabels: {app: other}}}}`))
	asked := make(chan struct{}, 100)
	c.PrependReactor("list", "pods", func(ktesting.Action) (bool, runtime.Object, error) {
		asked <- struct{}{}
		return true, nil, errors.New("not now")
	})
	c.PrependWatchReactor("pods", func(ktesting.Action) (bool, watch.Interface, error) { return true, nil, errors.New("not now") })
	f := newFollower(c, "here", k)
	run(t, f)
	ip := netip.MustParseAddr("10.42.1.3")
	<-asked
	if err := f.Starts(apiPod("a", "here", ""), []netip.Addr{ip}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(k.held, []netip.Addr{ip}) || len(k.applied) > 0 {
		t.Errorf("held %v, applied %v", k.held, k.applied)
	}
}
