package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// sctpPod is a pod that speaks SCTP, or with another command one that only asks.
func sctpPod(name, app, node, spec string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers:
  - {name: c, image: "gitk8s.local/test/web:v1", %s}
`, name, app, node, spec)
}

const (
	sctpServer = `args: [sctp-serve, "9999"], readinessProbe: {exec: {command: [/server, sctp-ask, "127.0.0.1:9999"]}, periodSeconds: 1, timeoutSeconds: 10}`
	sctpHosted = sctpServer + `, ports: [{containerPort: 9999, hostPort: 9998, protocol: SCTP}]`
	sctpClient = `args: [sleep, 1h]`

	sctpServices = `---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: ask, protocol: SCTP, port: 80, targetPort: 9999}]}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: NodePort, externalTrafficPolicy: Local, selector: {app: web}, ports: [{name: ask, protocol: SCTP, port: 80, targetPort: 9999}]}
---
apiVersion: v1
kind: Service
metadata: {name: webs}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: ask, protocol: SCTP, port: 9999}]}
`
)

// sctpBed asks servers by SCTP from the network namespaces of pods and others: starting
// kubectl takes long in an emulated machine.
type sctpBed struct {
	t       *testing.T
	c       *cluster
	ns      string
	program string // that of the images
	pods    map[string]*corev1.Pod
}

// from asks once from where a pod is.
func (b sctpBed) from(pod, to string) (string, error) {
	p := b.pods[pod]
	return b.in(filepath.Join(b.c.dataDir, "nodes", p.Spec.NodeName, "network", string(p.UID)+".netns"), to)
}

// in asks once from a network namespace.
func (b sctpBed) in(netNS, to string) (string, error) {
	return said(b.c.exec("", "", inNetNS(netNS, []string{b.program, "sctp-ask", to})...))
}

// said is an answer's "SERVER asked by CLIENT", which both messages must have got.
func said(r result) (string, error) {
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	who, short := strings.CutSuffix(lines[0], ": 5 bytes")
	if r.code != 0 || len(lines) != 2 || !short || !strings.HasPrefix(lines[1], who+": ") {
		return "", errors.New(r.String())
	}
	return who, nil
}

// reaches waits for an answer.
func (b sctpBed) reaches(what string, ask func() (string, error), want ...string) {
	b.t.Helper()
	start := time.Now()
	eventually(b.t, what, func() error {
		got, err := ask()
		for _, w := range want {
			if err == nil && got != w {
				err = fmt.Errorf("%q, not %q", got, w)
			} else if err == nil {
				return nil
			}
		}
		return err
	})
	b.t.Logf("%s: after %s", what, time.Since(start).Round(time.Millisecond))
}

// answers asks some times, and says how often each server was heard.
func (b sctpBed) answers(n int, ask func() (string, error)) map[string]int {
	b.t.Helper()
	heard := map[string]int{}
	for range n {
		got, err := ask()
		if err != nil {
			b.t.Error(err)
		}
		server, _, _ := strings.Cut(got, " ")
		heard[server]++
	}
	return heard
}

// TestSCTP has pods serve and ask by SCTP. Where the kernel has none, TestServices sees
// that users are told; `make test-kernel` runs this where it has.
func TestSCTP(t *testing.T) {
	if !network.HasSCTP() {
		if os.Getenv("GITK8S_TEST_SCTP") != "" {
			t.Fatal("the kernel has no SCTP")
		}
		t.Skip("the kernel has no SCTP; `make test-kernel` runs it on a virtual machine")
	}
	patience = 5 * time.Minute // the machine is emulated
	c := suite.shared
	b := sctpBed{t: t, c: c, ns: c.namespace(t, "sctp"), pods: map[string]*corev1.Pod{}, program: filepath.Join(t.TempDir(), "server")}
	if err := os.WriteFile(b.program, suite.server, 0o700); err != nil {
		t.Fatal(err)
	}
	c.apply(t, b.ns, sctpServices+sctpPod("web-1", "web", "worker-1", sctpHosted)+sctpPod("web-2", "web", "worker-2", sctpServer)+
		sctpPod("near", "near", "worker-1", sctpClient)+sctpPod("far", "far", "worker-2", sctpClient))
	for _, name := range []string{"web-1", "web-2", "near", "far"} {
		b.pods[name] = c.awaitPod(t, b.ns, name, "it is Ready", ready)
	}
	t.Run("Pods", func(t *testing.T) { b.on(t).direct() })
	t.Run("Service", func(t *testing.T) { b.on(t).service() })
	t.Run("NodePort", func(t *testing.T) { b.on(t).nodePorts() })
	t.Run("Names", func(t *testing.T) { b.on(t).names() })
	t.Run("NetworkPolicy", func(t *testing.T) { b.on(t).policies() })
	t.Run("Affinity and endpoints", func(t *testing.T) { b.on(t).endpoints() })
}

func (b sctpBed) on(t *testing.T) sctpBed { b.t = t; return b }

func at(pod *corev1.Pod) string { return pod.Status.PodIP + ":9999" }

// direct: pods reach each other by their addresses, on one node and on two.
func (b sctpBed) direct() {
	for _, from := range []string{"near", "far"} {
		for _, to := range []string{"web-1", "web-2"} {
			b.reaches(from+" reaches "+to, func() (string, error) { return b.from(from, at(b.pods[to])) }, to+" asked by "+b.pods[from].Status.PodIP)
		}
	}
}

// service is reached at its address from pods and from a node, and is itself a client.
func (b sctpBed) service() {
	t := b.t
	address := b.c.service(t, b.ns, "web").Spec.ClusterIP + ":80"
	for _, from := range []string{"near", "far", "web-1"} {
		ask := func() (string, error) { return b.from(from, address) }
		ip := b.pods[from].Status.PodIP
		want := []string{"web-1 asked by " + ip, "web-2 asked by " + ip}
		if from == "web-1" { // a server that is led to itself has its node's address
			want = []string{"web-2 asked by " + ip}
		}
		b.reaches(from+" reaches the service", ask, want...)
		if heard := b.answers(16, ask); heard["web-1"] == 0 || heard["web-2"] == 0 {
			t.Errorf("from %s: %v", from, heard)
		}
	}
	node := network.NodeNetNS(b.c.id(), "worker-1")
	if heard := b.answers(12, func() (string, error) { return b.in(node, address) }); heard["web-1"] == 0 || heard["web-2"] == 0 {
		t.Errorf("from a node: %v", heard)
	}
	if got, err := said(b.c.run("kubectl", "exec", "-n", b.ns, "near", "--", "/server", "sctp-ask", address)); err != nil || !strings.HasSuffix(got, " asked by "+b.pods["near"].Status.PodIP) {
		t.Error(got, err)
	}
	contains(t, b.c.ok(t, "net", "services", "web", "-n", b.ns), address+"/SCTP", "in place")
}

// nodePorts are reached from outside of the nodes, at both of them; and a host port.
func (b sctpBed) nodePorts() {
	hub := network.HubNetNS(b.c.id())
	cluster, local := b.c.service(b.t, b.ns, "web").Spec.Ports[0].NodePort, b.c.service(b.t, b.ns, "local").Spec.Ports[0].NodePort
	for node, server := range map[string]string{nodeOne: "web-1", nodeTwo: "web-2"} {
		ask := func() (string, error) { return b.in(hub, fmt.Sprintf("%s:%d", node, cluster)) }
		b.reaches("the node port of "+node, ask, "web-1 asked by "+node, "web-2 asked by "+node)
		if heard := b.answers(12, ask); heard["web-1"] == 0 || heard["web-2"] == 0 {
			b.t.Errorf("at %s: %v", node, heard)
		}
		b.reaches("the local node port of "+node, func() (string, error) { return b.in(hub, fmt.Sprintf("%s:%d", node, local)) }, server+" asked by "+hubIP)
	}
	b.c.eventOf(b.t, b.ns, "web", "PortNotOpen", fmt.Sprintf("port %d/SCTP is not open on this machine", cluster))
	b.reaches("the host port", func() (string, error) { return b.in(hub, nodeOne+":9998") }, "web-1 asked by "+hubIP)
}

// names: the protocol is part of a port's name.
func (b sctpBed) names() {
	zone := b.ns + ".svc.cluster.local"
	for name, want := range map[string]string{
		"_ask._sctp.web." + zone:  "web." + zone + ".:80",
		"_ask._sctp.webs." + zone: ":9999",
	} {
		eventually(b.t, name, func() error {
			r := b.c.run("kubectl", "exec", "-n", b.ns, "near", "--", "/server", "lookup", "srv", name)
			if !strings.Contains(r.stdout, want) {
				return errors.New(r.String())
			}
			return nil
		})
	}
}

// policies let in and out by SCTP's ports, which are others than TCP's.
func (b sctpBed) policies() {
	t := b.t
	policy := func(name, spec string) {
		b.c.apply(t, b.ns, fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s}\nspec: %s\n", name, spec))
	}
	allowed := func(what, from string) {
		t.Helper()
		b.reaches(what+", "+from, func() (string, error) { return b.from(from, at(b.pods["web-2"])) }, "web-2 asked by "+b.pods[from].Status.PodIP)
	}
	denied := func(what, from string) {
		t.Helper()
		eventually(t, what+", "+from, func() error {
			if got, err := b.from(from, at(b.pods["web-2"])); err == nil {
				return fmt.Errorf("it is answered by %s", got)
			}
			return nil
		})
	}
	const web = `podSelector: {matchLabels: {app: web}}`
	policy("web", `{`+web+`, ingress: [{from: [{podSelector: {matchLabels: {app: near}}}], ports: [{protocol: SCTP, port: 9999}]}]}`)
	denied("allowed to another", "far")
	allowed("allowed", "near")
	address := b.c.service(t, b.ns, "web").Spec.ClusterIP + ":80"
	b.reaches("by the service", func() (string, error) { return b.from("near", address) }, "web-2 asked by "+b.pods["near"].Status.PodIP, "web-1 asked by "+b.pods["near"].Status.PodIP)
	policy("web", `{`+web+`, ingress: [{ports: [{protocol: TCP, port: 9999}]}]}`)
	denied("another protocol's port", "near")
	policy("web", `{`+web+`, ingress: [{ports: [{protocol: SCTP, port: 9000, endPort: 9998}]}]}`)
	denied("other ports", "near")
	policy("web", `{`+web+`, ingress: [{ports: [{protocol: SCTP, port: 9000, endPort: 10000}]}]}`)
	allowed("a range of ports", "near")
	policy("near", `{podSelector: {matchLabels: {app: near}}, policyTypes: [Egress], egress: [{ports: [{protocol: SCTP, port: 80}]}]}`)
	denied("not let out", "near")
	allowed("not selected", "far")
	policy("near", `{podSelector: {matchLabels: {app: near}}, policyTypes: [Egress], egress: [{ports: [{protocol: SCTP, port: 9999}]}]}`)
	allowed("let out", "near")
	contains(t, b.c.ok(t, "net", "trace", "-n", b.ns, "near", "web-2:9999/sctp"), "allowed by "+b.ns+"/near spec.egress[0]")
	b.c.kubectl(t, "delete", "networkpolicy", "-n", b.ns, "--all")
	allowed("without policies", "near")
}

// endpoints: a client stays with a server as long as that is there.
func (b sctpBed) endpoints() {
	t := b.t
	address := b.c.service(t, b.ns, "web").Spec.ClusterIP + ":80"
	b.c.kubectl(t, "patch", "service", "web", "-n", b.ns, "-p", `{"spec":{"sessionAffinity":"ClientIP"}}`)
	ask := func() (string, error) { return b.from("near", address) }
	var stays string
	eventually(t, "the service has affinity", func() error {
		heard := b.answers(8, ask)
		for server, n := range heard {
			if stays = server; n == 8 {
				return nil
			}
		}
		return fmt.Errorf("%v", heard)
	})
	other := map[string]string{"web-1": "web-2", "web-2": "web-1"}[stays]
	b.c.kubectl(t, "delete", "pod", "-n", b.ns, stays)
	b.reaches("without "+stays, ask, other+" asked by "+b.pods["near"].Status.PodIP)
	if heard := b.answers(8, ask); heard[other] != 8 {
		t.Errorf("without %s: %v", stays, heard)
	}
	b.c.kubectl(t, "delete", "pod", "-n", b.ns, other)
	eventually(t, "there is no endpoint", func() error {
		if got, err := ask(); err == nil {
			return errors.New(got)
		}
		return nil
	})
}
