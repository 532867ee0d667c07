package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// inNetNS is a command line inside a network namespace; nsenter replaces itself, so
// that the process is the program's.
func inNetNS(ns string, args []string) []string {
	if ns == "" {
		return args
	}
	return append([]string{"nsenter", "--net=" + ns}, args...)
}

// machine is a network namespace with an address on a common link and a data
// directory: what makes one machine another, for a program that runs on it.
type machine struct {
	*cluster // its data directory and network namespace, for commands on it
	ip       netip.Addr
	ips      []netip.Addr // all it has
	bin      string       // the program of its worker
	worker   *process
}

// links counts the links and the sites that machines are on, for their names: tests make
// some at the same time.
var links atomic.Int64

// machines makes n of them, removed with the test.
func machines(t *testing.T, n int) []*machine { return machinesIn(t, n, ranges) }

// machinesIn makes them with addresses of other ranges.
func machinesIn(t *testing.T, n int, ranges network.Ranges) []*machine {
	t.Helper()
	link := links.Add(1)
	id := fmt.Sprintf("e2e-%d-%d", os.Getpid(), link)
	t.Cleanup(func() {
		if err := network.DeleteTopology(id); err != nil {
			t.Error(err)
		}
	})
	if err := network.EnsureHub(id, ranges); err != nil {
		t.Fatal(err)
	}
	var out []*machine
	for i := 1; i <= n; i++ {
		name := fmt.Sprintf("machine-%d", i)
		node, err := network.EnsureNode(id, name, i, ranges)
		if err != nil {
			t.Fatal(err)
		}
		c := newCluster(fmt.Sprintf("machine-%d-%d", link, i))
		c.netns = node.NetNS
		m := &machine{cluster: c, ip: node.IPs[0], ips: node.IPs, bin: suite.bin}
		out = append(out, m)
		t.Cleanup(func() { m.clean(t) })
	}
	return out
}

// clean removes what runs on a machine, as a user would who takes it out of service.
func (m *machine) clean(t *testing.T) {
	for _, p := range []*process{m.up, m.worker} {
		if t.Failed() && p != nil {
			t.Logf("%s, %s\n%s", m.name, strings.Join(p.cmd.Args, " "), tail(p.out.String(), 60))
		}
	}
	if r := m.run("down", "--purge"); r.code != 0 {
		t.Error(r)
	}
	for _, p := range []*process{m.up, m.worker} {
		if p == nil {
			continue
		}
		_ = p.cmd.Process.Kill() // in case `down` failed
		<-p.done
	}
	if err := m.leftovers(); err != nil {
		t.Error(err)
	}
	// As in /proc/net/route: the least significant byte comes first.
	left := m.exec("", "", "cat", "/proc/self/net/route", "/proc/self/net/dev").stdout
	for _, ours := range []string{"2A0A\t", "2B0A\t", "gitk8s-vxlan", "gitk8s-wg"} {
		if strings.Contains(left, ours) {
			t.Errorf("%s still has routes to pods or services, or tunnels:\n%s", m.name, left)
		}
	}
	// fd00:10:52 and fd00:10:53 are those of TestDualStackMachines.
	if routes := m.exec("", "", "cat", "/proc/self/net/ipv6_route").stdout; m.worker != nil && (strings.Contains(routes, "fd0000100052") || strings.Contains(routes, "fd0000100053")) {
		t.Errorf("%s still has routes to pods or services:\n%s", m.name, routes)
	}
}

// serve starts `gitk8s server` and waits for its API.
func (c *cluster) serve(flags ...string) error {
	p, err := c.launch(append([]string{suite.bin, "server", "--data-dir", c.dataDir, "--log-level", "info"}, flags...)...)
	if err != nil {
		return err
	}
	c.up = p
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	over, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	go func() {
		select {
		case <-p.done:
			lost(fmt.Errorf("it ended: %v", p.err))
		case <-over.Done():
		}
	}()
	if err := p.out.await(over, "API ready at"); err != nil {
		return fmt.Errorf("gitk8s server: %w\n%s", err, p.out)
	}
	return c.connect()
}

func nodeReady(n *corev1.Node) bool {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// TestMachines runs the control plane on one machine and workers on two others.
func TestMachines(t *testing.T) {
	t.Parallel()
	all := machines(t, 4) // the last one is a stranger
	server, workers := all[0], map[string]*machine{"one": all[1], "two": all[2]}
	c := server.cluster
	if err := c.serve("--listen", server.ip.String()); err != nil {
		t.Fatal(err)
	}
	if err := c.pushImages(); err != nil {
		t.Fatal(err)
	}
	workers["one"].bin = cmp.Or(os.Getenv("GITK8S_E2E_OLD"), suite.bin)
	for name, m := range workers {
		m.enroll(t, c, name, nil)
	}
	startWorkers(t, c, workers)
	c.kubectl(t, "wait", "--for=condition=Ready", "node/one", "node/two", "--timeout=60s")

	ns := c.namespace(t, "machines")
	c.apply(t, ns, `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false # so that it runs on every version of a worker
      containers:
      - name: web
        image: gitk8s.local/test/web:v1
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: http}]}
`)
	pods := map[string]*corev1.Pod{}
	for _, p := range c.awaitPods(t, ns, "app=web", "both are Ready", func(pods []*corev1.Pod) bool {
		return len(pods) == 2 && ready(pods[0]) && ready(pods[1])
	}) {
		pods[p.Spec.NodeName] = p
	}
	if len(pods) != 2 {
		t.Fatalf("the pods are not on two machines: %v", pods)
	}
	for node, p := range pods {
		contains(t, c.kubectl(t, "logs", "-n", ns, p.Name), "listening v1")
		contains(t, c.kubectl(t, "exec", "-n", ns, p.Name, "--", "/server", "args", "on", node), "on|"+node)
	}

	t.Run("a pod reaches who knows nothing of pods", func(t *testing.T) {
		at := serveAt(t, all[3].netns, all[3].ip.String()+":8099", "stranger")
		contains(t, c.inPod(t, ns, pods["one"].Name, "fetch", "http://"+at), "stranger asked by "+workers["one"].ip.String())
	})
	t.Run("a pod reaches the pod on the other machine", func(t *testing.T) {
		for _, pair := range [][2]string{{"one", "two"}, {"two", "one"}} {
			from, to := pods[pair[0]], pods[pair[1]]
			contains(t, c.kubectl(t, "exec", "-n", ns, from.Name, "--", "/server", "fetch", "http://"+to.Status.PodIP+":8080/"), to.Name)
		}
	})
	svc, err := c.k.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("a Service reaches the pods on both", func(t *testing.T) {
		for _, from := range pods {
			answered := map[string]bool{}
			eventually(t, "both pods answer "+from.Name, func() error {
				r := c.run("kubectl", "exec", "-n", ns, from.Name, "--", "/server", "fetch", "http://"+svc.Spec.ClusterIP+"/")
				for node, p := range pods {
					if strings.Contains(r.stdout, p.Name) {
						answered[node] = true
					}
				}
				if len(answered) < len(pods) {
					return fmt.Errorf("so far only %v; %s", answered, r)
				}
				return nil
			})
		}
		for _, from := range pods {
			contains(t, c.kubectl(t, "exec", "-n", ns, from.Name, "--", "/server", "fetch", "http://web."+ns+"/"), "v1")
		}
		c.answers(t, ns, "web", "v1") // through the API server, from its machine
	})
	t.Run("the API is a Service", func(t *testing.T) {
		// The endpoint of default/kubernetes must be the server's machine.
		ep := c.kubectl(t, "get", "endpointslices", "-n", "default", "kubernetes", "-o", "jsonpath={.endpoints[*].addresses[0]}:{.ports[0].port}")
		if ep != server.ip.String()+":6443" {
			t.Errorf("the API's endpoint is %q", ep)
		}
	})
	t.Run("killing a worker keeps its containers", func(t *testing.T) {
		m, before := workers["one"], lifeOf(pods["one"])
		kill9(t, m.worker.cmd.Process.Pid)
		<-m.worker.done
		contains(t, c.kubectl(t, "exec", "-n", ns, pods["two"].Name, "--", "/server", "fetch", "http://"+pods["one"].Status.PodIP+":8080/"), pods["one"].Name)
		killed := time.Now()
		m.startWorker(t, "one")
		eventually(t, "the worker renews its lease again", func() error {
			l, err := c.k.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), "one", metav1.GetOptions{})
			if err != nil {
				return err
			}
			if l.Spec.RenewTime == nil || !l.Spec.RenewTime.After(killed) {
				return errors.New("not yet")
			}
			return nil
		})
		eventually(t, "exec works again", func() error {
			r := c.run("kubectl", "exec", "-n", ns, pods["one"].Name, "--", "/server", "args", "back")
			if r.code != 0 {
				return errors.New(r.String())
			}
			return nil
		})
		p := c.awaitPod(t, ns, pods["one"].Name, "it is Ready", ready)
		if after := lifeOf(p); after != before {
			t.Errorf("the container changed: %+v, before %+v", after, before)
		}
	})
	t.Run("the API is away, and pods go on", func(t *testing.T) { apiAway(t, server, workers["two"], pods["one"], pods["two"]) })
	t.Run("a worker is upgraded under its pods", func(t *testing.T) { upgraded(t, c, ns, workers["one"], pods["one"]) })
}

// apiAway kills the server: pods answer on, and a container that ends is started
// again by its node alone. When the server is back it finds all that out, and has
// nobody moved.
func apiAway(t *testing.T, server, m *machine, other, pod *corev1.Pod) {
	flags := []string{"--listen", server.ip.String()}
	kill9(t, server.up.cmd.Process.Pid)
	<-server.up.done
	shim := m.processOf(t, "gitk8s-shim", pod.Namespace+"/"+pod.Name)
	killed := child(t, shim)
	kill9(t, killed)
	eventually(t, "the container has ended", func() error {
		if syscall.Kill(killed, 0) == nil {
			return fmt.Errorf("process %d is still there", killed)
		}
		return nil
	})
	for _, p := range []*corev1.Pod{pod, other} {
		eventually(t, p.Name+" answers without a server", func() error {
			r := m.exec("", "", filepath.Join(suite.dir, "server"), "fetch", "http://"+p.Status.PodIP+":8080/")
			if !strings.Contains(r.stdout, p.Name) {
				return errors.New(r.String())
			}
			return nil
		})
	}
	if text := os.Getenv("GITK8S_E2E_AWAY"); text != "" {
		stayAway(t, text, m, pod)
	}
	if err := server.serve(flags...); err != nil {
		t.Fatal(err)
	}
	c := server.cluster
	for _, node := range []string{"one", "two"} {
		await(t, c, nodesGVR, "", node, "the node is Ready", nodeReady)
	}
	c.awaitPod(t, pod.Namespace, pod.Name, "its restart is told", func(p *corev1.Pod) bool {
		return ready(p) && lifeOf(p).restarts == lifeOf(pod).restarts+1
	})
	if now := c.awaitPod(t, other.Namespace, other.Name, "it is Ready", ready); lifeOf(now) != lifeOf(other) {
		t.Errorf("the container changed: %+v, before %+v", lifeOf(now), lifeOf(other))
	}
}

// stayAway lets more time pass without a server than a usual run has: by then every
// lease is long over.
func stayAway(t *testing.T, text string, m *machine, pod *corev1.Pod) {
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(d)
	look := time.NewTicker(5 * time.Second)
	defer look.Stop()
	for time.Now().Before(end) {
		<-look.C
		if r := m.exec("", "", filepath.Join(suite.dir, "server"), "fetch", "http://"+pod.Status.PodIP+":8080/"); !strings.Contains(r.stdout, pod.Name) {
			t.Errorf("%s before the end: %s", time.Until(end), r)
		}
	}
}

// upgraded stops a worker in order and starts another version of the program: its
// pods' containers run on, and the new one has them in hand. The new version is the
// program with another number; GITK8S_E2E_OLD names a program for the old one that
// is really older.
func upgraded(t *testing.T, c *cluster, ns string, m *machine, pod *corev1.Pod) {
	node := await(t, c, nodesGVR, "", pod.Spec.NodeName, "the node is Ready", nodeReady)
	before := node.Status.NodeInfo.KubeletVersion
	_, version, _ := strings.Cut(before, "+")
	program, err := os.ReadFile(suite.bin)
	if err != nil {
		t.Fatal(err)
	}
	m.bin = filepath.Join(t.TempDir(), "gitk8s")
	program = bytes.ReplaceAll(program, []byte("+"+version), []byte("+"+strings.Repeat("9", len(version))))
	if err := os.WriteFile(m.bin, program, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := m.worker.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-m.worker.done
	m.startWorker(t, node.Name)
	await(t, c, nodesGVR, "", node.Name, "it is of the new version", func(n *corev1.Node) bool {
		return nodeReady(n) && n.Status.NodeInfo.KubeletVersion != before
	})
	eventually(t, "exec works again", func() error {
		r := c.run("kubectl", "exec", "-n", ns, pod.Name, "--", "/server", "args", "back")
		if r.code != 0 {
			return errors.New(r.String())
		}
		return nil
	})
	if now := c.awaitPod(t, ns, pod.Name, "it is Ready", ready); lifeOf(now) != lifeOf(pod) {
		t.Errorf("the container changed: %+v, before %+v", lifeOf(now), lifeOf(pod))
	}
	// The new version ends what the old one began.
	c.kubectl(t, "delete", "pod", "-n", ns, pod.Name)
	awaitGone(t, c, corev1.SchemeGroupVersion.WithResource("pods"), ns, pod.Name)
}
