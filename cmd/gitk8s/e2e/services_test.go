package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

const (
	hubIP   = "10.41.0.1"
	nodeOne = "10.41.0.11"
	nodeTwo = "10.41.0.12"
)

// ranges are those of clusters that are not told others.
var ranges = network.Ranges{
	Nodes: []netip.Prefix{netip.MustParsePrefix("10.41.0.0/24")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
	Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
}

// servicePods are two pods, one on each node, and one that is on the first alone.
const servicePods = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: web, image: "gitk8s.local/test/web:v1", readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}}]
---
apiVersion: v1
kind: Pod
metadata: {name: only, labels: {app: only}}
spec: {nodeName: worker-1, terminationGracePeriodSeconds: 0, containers: [{name: c, image: "gitk8s.local/test/web:v1"}]}
`

// from asks for a path from a network namespace, by a connection of its own.
func (c *cluster) from(ns, at, path string) (string, int, error) {
	dial := (&net.Dialer{}).DialContext
	if ns != "" {
		dial = network.DialIn(ns)
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dial}}
	resp, err := client.Get("http://" + at + path)
	if err != nil {
		return "", 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return strings.TrimSpace(string(b)), resp.StatusCode, err
}

// asks waits for an answer, a line, that contains a text.
func (c *cluster) asks(t *testing.T, what, ns, at, want string) string {
	t.Helper()
	var got string
	eventually(t, what, func() (err error) {
		if got, _, err = c.from(ns, at, "/client"); err == nil && !strings.Contains(got+"\n", want) {
			err = fmt.Errorf("it answers %q, not %q", got, want)
		}
		return err
	})
	return got
}

func (c *cluster) service(t *testing.T, ns, name string) *corev1.Service {
	t.Helper()
	svc, err := c.k.CoreV1().Services(ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

func (c *cluster) eventOf(t *testing.T, ns, object, reason, text string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s has an event %s", object, reason), func() error {
		list, err := c.k.CoreV1().Events(ns).List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.name=" + object + ",reason=" + reason})
		if err != nil {
			return err
		}
		for _, e := range list.Items {
			if strings.Contains(e.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("it has %d others", len(list.Items))
	})
}

// TestServices: from the machine, from nodes and from pods, by stock kubectl and
// plain connections.
func TestServices(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "services")
	k := kubectls(c)["own"]
	if system, ok := kubectls(c)["system"]; ok {
		k = system
	}
	k = k.in(ns)
	c.apply(t, ns, servicePods)
	c.awaitPod(t, ns, "only", "it is ready", ready)
	c.awaitPods(t, ns, "app=web", "both are ready", func(p []*corev1.Pod) bool { return len(p) == 2 && ready(p[0]) && ready(p[1]) })
	t.Run("NodePort", func(t *testing.T) { nodePorts(t, c, k, ns) })
	t.Run("LoadBalancer", func(t *testing.T) { loadBalancers(t, c, k, ns) })
	t.Run("Local", func(t *testing.T) { localTraffic(t, c, k, ns) })
	t.Run("hostPort", func(t *testing.T) { podPorts(t, c, ns) })
	t.Run("WithoutSelector", func(t *testing.T) { withoutSelector(t, c, k, ns) })
	t.Run("WhoAnswers", func(t *testing.T) { whoAnswers(t, c, k, ns) })
}

// podPorts: a pod has ports of its node, which see the client's own address.
func podPorts(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: ported}
spec:
  nodeSelector: {kubernetes.io/hostname: worker-1}
  terminationGracePeriodSeconds: 0
  containers: [{name: c, image: "gitk8s.local/test/web:v1", ports: [{containerPort: 8080, hostPort: 8090}, {containerPort: 8080, hostPort: 8091, hostIP: 127.0.0.1}]}]
`)
	c.awaitPod(t, ns, "ported", "it is ready", ready)
	hub, one := network.HubNetNS(c.id()), network.NodeNetNS(c.id(), "worker-1")
	c.asks(t, "from outside", hub, nodeOne+":8090", "ported asked by "+hubIP+"\n")
	c.asks(t, "on the node", one, nodeOne+":8090", "ported asked by")
	c.asks(t, "at the node's loopback", one, "127.0.0.1:8091", "ported asked by")
	contains(t, c.inPod(t, ns, "only", "fetch", "http://"+nodeOne+":8090/client"), "ported asked by")
	contains(t, c.inPod(t, ns, "ported", "fetch", "http://"+nodeOne+":8090/client"), "ported asked by")
	c.kubectl(t, "delete", "pod", "-n", ns, "ported")
	eventually(t, "the port is closed", func() error {
		body, _, err := c.from(hub, nodeOne+":8090", "/client")
		if err == nil {
			return errors.New(body)
		}
		return nil
	})
}

func nodePorts(t *testing.T, c *cluster, k tool, ns string) {
	hub, one := network.HubNetNS(c.id()), network.NodeNetNS(c.id(), "worker-1")
	contains(t, k.run(t, "create", "service", "nodeport", "web", "--tcp=80:8080"), "service/web created")
	port := c.service(t, ns, "web").Spec.Ports[0].NodePort
	contains(t, k.run(t, "get", "service", "web"), "NodePort", fmt.Sprintf("80:%d/TCP", port))
	at := func(ip string) string { return net.JoinHostPort(ip, strconv.Itoa(int(port))) }
	c.asks(t, "the machine's loopback", "", at("127.0.0.1"), "web-")
	c.asks(t, "a node from outside", hub, at(nodeOne), "asked by "+nodeOne+"\n")
	c.asks(t, "the other node from outside", hub, at(nodeTwo), "web-")
	c.asks(t, "a node's own address", one, at(nodeOne), "asked by "+nodeOne+"\n")
	c.asks(t, "a node's loopback", one, at("127.0.0.1"), "asked by "+nodeOne+"\n")
	contains(t, c.inPod(t, ns, "only", "fetch", "http://"+at(nodeTwo)+"/client"), "asked by "+nodeTwo+"\n")

	// The port is taken; another protocol of the same service shares it.
	r := k.try("", "create", "service", "nodeport", "twice", "--tcp=80:8080", fmt.Sprintf("--node-port=%d", port))
	if want := fmt.Sprintf("spec.ports[0].nodePort: Invalid value: %d: provided port is already allocated", port); !strings.Contains(r.stderr, want) {
		t.Errorf("%s, want %q", r, want)
	}
	k.run(t, "patch", "service", "web", "--type=merge", "-p", `{"spec":{"ports":[{"name":"80-8080","port":80,"targetPort":8080},{"name":"u","port":80,"targetPort":8080,"protocol":"UDP"}]}}`)
	if got := c.service(t, ns, "web").Spec.Ports; got[0].NodePort != port || got[1].NodePort != port {
		t.Errorf("%+v", got)
	}
	eventually(t, "UDP by the machine's loopback", func() error {
		conn, err := net.Dial("udp", at("127.0.0.1"))
		if err != nil {
			return err
		}
		defer conn.Close()
		buf := make([]byte, 100)
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		if _, err := conn.Write([]byte("?")); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err == nil && !strings.HasPrefix(string(buf[:n]), "web-") {
			err = errors.New(string(buf[:n]))
		}
		return err
	})

	if !network.HasSCTP() {
		c.apply(t, ns, "apiVersion: v1\nkind: Service\nmetadata: {name: sctp}\nspec: {ports: [{port: 80, protocol: SCTP}]}\n")
		c.eventOf(t, ns, "sctp", "SCTPNotSupported", "kernel has no SCTP")
	}

	// Somebody on the machine has the port.
	var l net.Listener
	taken := ""
	for n := 30085; l == nil; n-- { // those that are given to who asks for them by number
		if n < 30000 {
			t.Fatal("no node port is free on this machine")
		}
		taken = strconv.Itoa(n)
		l, _ = net.Listen("tcp", "127.0.0.1:"+taken)
	}
	defer l.Close()
	k.run(t, "create", "service", "nodeport", "only", "--tcp=80:8080", "--node-port="+taken)
	c.eventOf(t, ns, "only", "PortNotOpen", "port "+taken+"/TCP is not open on this machine")
	_ = l.Close()
	c.asks(t, "once the port is free", "", "127.0.0.1:"+taken, "only asked by")
	k.run(t, "delete", "service", "only")
	eventually(t, "the port is closed", func() error {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+taken); err == nil {
			_ = conn.Close()
			return errors.New("it is open")
		}
		return nil
	})
}

func loadBalancers(t *testing.T, c *cluster, k tool, ns string) {
	hub := network.HubNetNS(c.id())
	manifest := func(name, more string) string {
		return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 18473, targetPort: 8080}]" + more + "}\n"
	}
	c.apply(t, ns, manifest("lb", ", allocateLoadBalancerNodePorts: false, loadBalancerSourceRanges: [10.41.0.0/24]"))
	c.asks(t, "the machine's loopback", "", "127.0.0.1:18473", "web-")
	c.asks(t, "a node", hub, nodeOne+":18473", "web-")
	contains(t, k.run(t, "get", "service", "lb"), "LoadBalancer", nodeOne+","+nodeTwo, "18473/TCP")
	contains(t, k.run(t, "describe", "service", "lb"), "EnsuredLoadBalancer", "LoadBalancer Ingress:", nodeOne+" (VIP)", "LoadBalancer Source Ranges:")
	if svc := c.service(t, ns, "lb"); svc.Spec.Ports[0].NodePort != 0 || len(svc.Finalizers) != 1 {
		t.Errorf("%+v %+v", svc.Finalizers, svc.Spec)
	}
	// Who is in no source range is not answered.
	short, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	pod := c.awaitPod(t, ns, "only", "it is ready", ready)
	if conn, err := network.DialIn(network.NodeNetNS(c.id(), "worker-1"))(short, "tcp", nodeOne+":18473"); err != nil {
		t.Errorf("a node in the range: %v", err)
	} else {
		_ = conn.Close()
	}
	if r := c.run("kubectl", "exec", "-n", ns, pod.Name, "--", "/server", "fetch", "http://"+nodeOne+":18473/"); r.code == 0 {
		t.Errorf("a pod in no range: %s", r)
	}

	c.apply(t, ns, manifest("late", ""))
	c.eventOf(t, ns, "late", "SyncLoadBalancerFailed", "port 18473/TCP of the nodes is in use by service "+ns+"/lb")
	contains(t, k.run(t, "get", "service", "late"), "<pending>")
	c.apply(t, ns, manifest("foreign", ", loadBalancerClass: example.com/lb"))
	k.run(t, "delete", "service", "lb")
	// The next one has the port now.
	eventually(t, "the late one gets its addresses", func() error {
		if svc := c.service(t, ns, "late"); len(svc.Status.LoadBalancer.Ingress) != 2 {
			return fmt.Errorf("%+v", svc.Status)
		}
		return nil
	})
	if svc := c.service(t, ns, "foreign"); len(svc.Finalizers) > 0 || len(svc.Status.LoadBalancer.Ingress) > 0 {
		t.Errorf("another's balancer was taken: %+v", svc)
	}
	k.run(t, "patch", "service", "late", "-p", `{"spec":{"type":"ClusterIP"}}`)
	eventually(t, "it is no balancer any more", func() error {
		if svc := c.service(t, ns, "late"); len(svc.Finalizers) > 0 || len(svc.Status.LoadBalancer.Ingress) > 0 || svc.Spec.Ports[0].NodePort != 0 {
			return fmt.Errorf("%+v %+v %+v", svc.Finalizers, svc.Spec, svc.Status)
		}
		return nil
	})
}

func localTraffic(t *testing.T, c *cluster, k tool, ns string) {
	hub, one, two := network.HubNetNS(c.id()), network.NodeNetNS(c.id(), "worker-1"), network.NodeNetNS(c.id(), "worker-2")
	c.apply(t, ns, `apiVersion: v1
kind: Service
metadata: {name: local}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: only}, ports: [{port: 18474, targetPort: 8080}], externalIPs: [192.0.2.44], trafficDistribution: PreferSameNode}
`)
	// Kept: the client's address, which is the hub's.
	c.asks(t, "the node with the pod", hub, nodeOne+":18474", "only asked by "+hubIP+"\n")
	svc := c.service(t, ns, "local")
	port := int(svc.Spec.Ports[0].NodePort)
	c.asks(t, "its node port", hub, net.JoinHostPort(nodeOne, strconv.Itoa(port)), "only asked by "+hubIP+"\n")
	c.asks(t, "the machine's loopback", "", "127.0.0.1:18474", "only asked by "+hubIP+"\n")
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if conn, err := network.DialIn(hub)(short, "tcp", net.JoinHostPort(nodeTwo, strconv.Itoa(port))); err == nil {
		_ = conn.Close()
		t.Error("a node without a pod answers")
	}
	c.asks(t, "a node without a pod, from itself", two, net.JoinHostPort(nodeTwo, strconv.Itoa(port)), "only asked by")
	if ingress := svc.Status.LoadBalancer.Ingress; len(ingress) > 1 || (len(ingress) == 1 && ingress[0].IP != nodeOne) {
		t.Errorf("%+v", ingress)
	}
	check := strconv.Itoa(int(svc.Spec.HealthCheckNodePort))
	for ns, want := range map[string]int{one: 200, two: 503} {
		eventually(t, "health check", func() error {
			body, code, err := c.from(ns, net.JoinHostPort("127.0.0.1", check), "/healthz")
			if err == nil && (code != want || !strings.Contains(body, `"service":{"namespace":"services","name":"local"}`)) {
				err = fmt.Errorf("%d: %s", code, body)
			}
			return err
		})
	}
	contains(t, c.inPod(t, ns, "only", "fetch", "http://192.0.2.44:18474/client"), "only asked by")
	contains(t, k.run(t, "get", "service", "local"), "192.0.2.44")
	contains(t, k.run(t, "get", "endpointslices", "-l", "kubernetes.io/service-name=local", "-o", "jsonpath={.items[*].endpoints[*].hints.forNodes[*].name}"), "worker-1")
}

func withoutSelector(t *testing.T, c *cluster, k tool, ns string) {
	pod := c.awaitPod(t, ns, "only", "it is ready", ready)
	const service = "apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec: {ports: [{port: 80}]}\n---\n"
	c.apply(t, ns, fmt.Sprintf(service, "manual")+"apiVersion: v1\nkind: Endpoints\nmetadata: {name: manual}\nsubsets: [{addresses: [{ip: "+pod.Status.PodIP+"}], ports: [{port: 8080}]}]\n")
	c.apply(t, ns, fmt.Sprintf(service, "slice")+"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: slice-1, labels: {kubernetes.io/service-name: slice}}\naddressType: IPv4\nports: [{port: 8080}]\nendpoints: [{addresses: ["+pod.Status.PodIP+"]}]\n")
	for _, name := range []string{"manual", "slice"} {
		c.asks(t, name, network.NodeNetNS(c.id(), "worker-2"), c.service(t, ns, name).Spec.ClusterIP+":80", "only asked by")
	}
	contains(t, k.run(t, "describe", "service", "manual"), "Endpoints:", pod.Status.PodIP+":8080")
	r := k.try("apiVersion: v1\nkind: Endpoints\nmetadata: {name: slice}\nsubsets: [{addresses: [{ip: 127.0.0.1}], ports: [{port: 8080}]}]\n", "create", "-f", "-")
	if !strings.Contains(r.stderr, "may not be in the loopback range") {
		t.Error(r)
	}
	k.run(t, "delete", "endpoints", "manual")
	eventually(t, "the mirror goes", func() error {
		if left := k.run(t, "get", "endpointslices", "-l", "kubernetes.io/service-name=manual", "-o", "name"); left != "" {
			return errors.New(left)
		}
		return nil
	})
}

// TestLoadBalancerPool: addresses of their own, announced by one node, and by another
// when that one is not to be used any more.
func TestLoadBalancerPool(t *testing.T) {
	t.Parallel()
	c := ownCluster(t, "--load-balancer-pool", "10.41.0.240-10.41.0.241")
	ns := c.namespace(t, "pool")
	hub := network.HubNetNS(c.id())
	c.apply(t, ns, servicePods)
	c.apply(t, ns, "apiVersion: v1\nkind: Service\nmetadata: {name: lb}\nspec: {type: LoadBalancer, selector: {app: only}, ports: [{port: 18475, targetPort: 8080}]}\n")
	c.asks(t, "the address", hub, "10.41.0.240:18475", "only asked by")
	c.asks(t, "the machine's loopback", "", "127.0.0.1:18475", "only asked by")
	has := c.service(t, ns, "lb").Annotations["gitk8s.dev/announced-by"]
	c.kubectl(t, "label", "node", has, "node.kubernetes.io/exclude-from-external-load-balancers=")
	eventually(t, "another node announces it", func() error {
		if now := c.service(t, ns, "lb").Annotations["gitk8s.dev/announced-by"]; now == has || now == "" {
			return fmt.Errorf("%q does", now)
		}
		return nil
	})
	c.asks(t, "the address at another node", hub, "10.41.0.240:18475", "only asked by")
	// What was given is still given after a crash of everything.
	port := c.service(t, ns, "lb").Spec.Ports[0].NodePort
	c.kill()
	if err := c.start(); err != nil {
		t.Fatal(err)
	}
	c.asks(t, "the address after a crash", hub, "10.41.0.240:18475", "only asked by")
	c.asks(t, "the machine's loopback after a crash", "", "127.0.0.1:18475", "only asked by")
	if now := c.service(t, ns, "lb").Spec.Ports[0].NodePort; now != port {
		t.Errorf("node port %d after %d", now, port)
	}
}
