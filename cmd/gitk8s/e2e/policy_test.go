package e2e

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

const (
	// effective is when a change of a policy or a label has to be felt, on a busy machine.
	effective = 5 * time.Second
	// unanswered is how long a connection is waited for that should not be.
	unanswered = 200 * time.Millisecond
)

const policyPods = `apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  nodeSelector: {kubernetes.io/hostname: worker-1}
  containers:
  - name: c
    image: gitk8s.local/test/web:v1
    env: [{name: GRPC_PORT, value: "9090"}]
    ports: [{containerPort: 8080, name: http}, {containerPort: 9090, name: grpc}]
    readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}, {name: grpc, port: 81, targetPort: grpc}]
`

// policyPod is one that answers at port 8080, or does what command says.
func policyPod(name, node, command string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "gitk8s.local/test/web:v1", command: [/server%s]}]
`, name, name, node, command)
}

// wire connects from where a pod is.
type wire struct {
	t *testing.T
	c *cluster
}

// connects says whether a pod gets a connection.
func (w wire) connects(from *corev1.Pod, to string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), wait)
	defer cancel()
	ns := filepath.Join(w.c.dataDir, "nodes", from.Spec.NodeName, "network", string(from.UID)+".netns")
	conn, err := network.DialIn(ns)(ctx, "tcp", to)
	if err == nil {
		conn.Close()
	}
	return err
}

// flow is a connection that should be possible, or not.
type flow struct {
	from *corev1.Pod
	to   string
	want bool
}

// settles expects all flows to become as they should be, soon.
func (w wire) settles(what string, flows ...flow) {
	w.t.Helper()
	start := time.Now()
	var wg sync.WaitGroup
	for _, f := range flows {
		wg.Go(func() {
			if err := w.becomes(f, start.Add(effective)); (err == nil) != f.want {
				w.t.Errorf("%s: %s to %s: connected: %v, want %v (%v)", what, f.from.Name, f.to, err == nil, f.want, err)
			}
		})
	}
	wg.Wait()
	w.t.Logf("%s: after %s", what, time.Since(start).Round(time.Millisecond))
}

// becomes tries until a flow is as it should be, or for the last time after limit.
func (w wire) becomes(f flow, limit time.Time) error {
	wait := unanswered
	if f.want {
		wait = time.Second
	}
	for {
		if err := w.connects(f.from, f.to, wait); (err == nil) == f.want || time.Now().After(limit) {
			return err
		}
	}
}

// TestNetworkPolicies connects pods of two nodes, by address and by a service.
func TestNetworkPolicies(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns, guests := c.namespace(t, "policies"), c.namespace(t, "policies-guests")
	c.kubectl(t, "label", "namespace", guests, "team=guests")
	c.apply(t, ns, policyPods+policyPod("near", "worker-1", "")+policyPod("far", "worker-2", ""))
	c.apply(t, guests, policyPod("guest", "worker-2", "")+policyPod("target", "worker-1", ""))
	running := func(ns, name string) *corev1.Pod { return c.awaitPod(t, ns, name, "is Ready", ready) }
	web, near, far, guest, target := running(ns, "web"), running(ns, "near"), running(ns, "far"), running(guests, "guest"), running(guests, "target")
	svc, err := c.k.CoreV1().Services(ns).Get(t.Context(), "web", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w := wire{t, c}
	at := func(p *corev1.Pod, port string) string { return net.JoinHostPort(p.Status.PodIP, port) }
	http, grpc, service, second := at(web, "8080"), at(web, "9090"), net.JoinHostPort(svc.Spec.ClusterIP, "80"), net.JoinHostPort(svc.Spec.ClusterIP, "81")
	w.settles("without a policy", flow{near, http, true}, flow{far, grpc, true}, flow{guest, service, true}, flow{guest, second, true})

	policy := func(ns, name, spec string) string {
		t.Helper()
		return c.apply(t, ns, fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec: %s\n", name, spec))
	}
	policy(ns, "deny", `{podSelector: {}, policyTypes: [Ingress]}`)
	w.settles("all denied", flow{near, http, false}, flow{far, http, false}, flow{far, service, false}, flow{guest, http, false}, flow{web, at(target, "8080"), true})
	c.fromNode(t, web)

	policy(ns, "peers", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: http}]}]}`)
	c.kubectl(t, "label", "pod", "-n", ns, "near", "role=client")
	w.settles("pods with a label, a named port",
		flow{near, http, true}, flow{near, service, true}, flow{near, grpc, false}, flow{near, second, false}, flow{far, http, false}, flow{guest, service, false})
	contains(t, c.ok(t, "net", "trace", "-n", ns, "near", "web:http"), "allowed by "+ns+"/peers")
	contains(t, c.ok(t, "net", "trace", "-n", ns, guests+"/guest", "web:grpc"), "denied", ns+"/deny, "+ns+"/peers; none of them allows it")
	c.kubectl(t, "label", "pod", "-n", ns, "far", "role=client")
	c.kubectl(t, "label", "pod", "-n", ns, "near", "role-")
	w.settles("other labels", flow{far, http, true}, flow{far, service, true}, flow{far, grpc, false}, flow{near, http, false})

	policy(ns, "peers", `{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: guests}}}], ports: [{port: 9000, endPort: 9100}]}]}`)
	w.settles("a namespace, a range of ports", flow{guest, grpc, true}, flow{target, second, true}, flow{guest, http, false}, flow{far, http, false})
	policy(ns, "peers", fmt.Sprintf(`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.42.0.0/16, except: ["%s/32"]}}]}]}`, guest.Status.PodIP))
	w.settles("a range of addresses", flow{near, http, true}, flow{far, service, true}, flow{target, grpc, true}, flow{guest, http, false}, flow{guest, second, false})

	policy(ns, "peers", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`)
	policy(guests, "out", `{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [target]}]}, policyTypes: [Egress]}`)
	w.settles("nothing goes out", flow{guest, http, false}, flow{guest, service, false}, flow{guest, at(target, "8080"), false}, flow{guest, "10.43.0.1:443", false},
		flow{target, http, true}, flow{target, at(guest, "8080"), true}, flow{near, at(guest, "8080"), true})
	if r := c.run("kubectl", "exec", "-n", guests, "guest", "--", "/server", "lookup", "host", "web."+ns); strings.TrimSpace(r.stdout) != svc.Spec.ClusterIP {
		t.Errorf("a pod that may reach nothing looks up a name: %s", r)
	}
	c.fromNode(t, guest)
	t.Run("first packets", func(t *testing.T) { firstPackets(t, c, ns, guests, at(target, "8080")) })

	policy(guests, "out", fmt.Sprintf(`{podSelector: {matchLabels: {app: guest}}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %s}}}], ports: [{port: http}]}]}`, ns))
	w.settles("one port goes out", flow{guest, http, true}, flow{guest, service, true}, flow{guest, grpc, false}, flow{guest, second, false}, flow{guest, at(target, "8080"), false})
	contains(t, c.kubectl(t, "exec", "-n", guests, "guest", "--", "/server", "fetch", "http://web."+ns+"/"), "v1 from web")

	if p := c.awaitPod(t, ns, "web", "is Ready", ready); p.Status.ContainerStatuses[0].RestartCount > 0 {
		t.Error("probes of a pod with policies failed")
	}
	c.kubectl(t, "delete", "networkpolicy", "-n", guests, "--all")
	c.kubectl(t, "delete", "networkpolicy", "-n", ns, "--all")
	w.settles("policies are gone", flow{guest, grpc, true}, flow{guest, at(target, "8080"), true})
}

// fromNode reaches a pod from its own node.
func (c *cluster) fromNode(t *testing.T, p *corev1.Pod) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	conn, err := network.DialIn(network.NodeNetNS(c.id(), p.Spec.NodeName))(ctx, "tcp4", net.JoinHostPort(p.Status.PodIP, "8080"))
	if err != nil {
		t.Errorf("pod %s does not answer its own node: %v", p.Name, err)
		return
	}
	conn.Close()
}

// firstPackets starts pods that connect as the first thing that they do: those that may
// not never get through, one that may does.
func firstPackets(t *testing.T, c *cluster, free, denied, to string) {
	const tries = 6
	fetch := ", fetch, 'http://" + to + "/', 2s"
	var manifest strings.Builder
	for i := range tries {
		manifest.WriteString(policyPod(fmt.Sprintf("hasty-%d", i), fmt.Sprintf("worker-%d", i%2+1), fetch))
	}
	c.apply(t, denied, manifest.String())
	c.apply(t, free, policyPod("free", "worker-2", fetch))
	over := func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	}
	if p := c.awaitPod(t, free, "free", "has ended", over); p.Status.Phase != corev1.PodSucceeded {
		t.Error("a pod that is not held back gets no answer")
	}
	for i := range tries {
		name := fmt.Sprintf("hasty-%d", i)
		p := c.awaitPod(t, denied, name, "has ended", over)
		if log := c.kubectl(t, "logs", "-n", denied, name); p.Status.Phase != corev1.PodFailed || !strings.Contains(log, "Client.Timeout") {
			t.Errorf("%s: %s %q", name, p.Status.Phase, log)
		}
	}
}
