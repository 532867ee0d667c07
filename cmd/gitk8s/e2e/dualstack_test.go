package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// The ranges of the clusters below, which are none of the defaults.
const (
	pods4, pods6         = "10.52.0.0/16", "fd00:10:52::/56"
	services4, services6 = "10.53.0.0/16", "fd00:10:53::/112"
	nodes4, nodes6       = "10.51.0.0/24", "fd00:10:51::/64"
)

// dualPods are one on each node that serve, and one that asks.
func dualPods(ns string) string {
	out := ""
	for _, p := range [][3]string{{"one", "worker-1", "web"}, {"two", "worker-2", "web"}, {"asks", "worker-2", "asks"}} {
		out += fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, labels: {app: %s}}
spec:
  nodeName: %s
  hostname: %s
  subdomain: headless
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: gitk8s.local/test/web:v1
    ports: [{name: http, containerPort: 8080%s}]
    env:
    - {name: POD_IPS, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: HOST_IPS, valueFrom: {fieldRef: {fieldPath: status.hostIPs}}}
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
---
`, p[0], p[2], p[1], p[0], map[string]string{"one": ", hostPort: 8095"}[p[0]])
	}
	return out
}

func dualService(name, spec string) string {
	return "apiVersion: v1\nkind: Service\nmetadata: {name: " + name + "}\nspec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]" + spec + "}\n---\n"
}

// clientURL of a port at an address.
func clientURL(ip string, port int) string {
	return "http://" + netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port)).String() + "/client"
}

func podIPs(p *corev1.Pod) (out []string) {
	for _, ip := range p.Status.PodIPs {
		out = append(out, ip.IP)
	}
	return out
}

// dual is a cluster with pods of more than the default addresses.
type dual struct {
	*cluster
	k                tool
	ns               string
	one, two, client *corev1.Pod
}

func newDual(t *testing.T, pods, services, nodes string) *dual {
	t.Helper()
	c := ownCluster(t, "--cluster-cidr", pods, "--service-cidr", services, "--node-network-cidr", nodes)
	d := &dual{cluster: c, ns: c.namespace(t, "dual")}
	k := kubectls(c)["own"]
	if system, ok := kubectls(c)["system"]; ok {
		k = system
	}
	d.k = k.in(d.ns)
	c.apply(t, d.ns, dualPods(d.ns))
	d.look(t)
	return d
}

// look takes note of the pods.
func (d *dual) look(t *testing.T) {
	t.Helper()
	for name, p := range map[string]**corev1.Pod{"one": &d.one, "two": &d.two, "asks": &d.client} {
		*p = d.awaitPod(t, d.ns, name, "it is ready", ready)
	}
}

// fetches expects what a pod gets from an address.
func (d *dual) fetches(t *testing.T, pod, url string, want ...string) {
	t.Helper()
	eventually(t, pod+" fetches "+url, func() error {
		r := d.k.try("", "exec", pod, "--", "/server", "fetch", url)
		for _, w := range want {
			if !strings.Contains(r.stdout, w) {
				return errors.New(r.String())
			}
		}
		return nil
	})
}

// looksUp expects the whole answer to a name; empty for none.
func (d *dual) looksUp(t *testing.T, kind, name, want string) {
	t.Helper()
	eventually(t, "look up "+kind+" of "+name, func() error {
		r := d.k.try("", "exec", "asks", "--", "/server", "lookup", kind, name)
		if strings.TrimSpace(r.stdout) != want || (want == "") != (r.code != 0) {
			return fmt.Errorf("%s, want %q", r, want)
		}
		return nil
	})
}

func (d *dual) families(t *testing.T, name, want string) *corev1.Service {
	t.Helper()
	svc := d.service(t, d.ns, name)
	if got := fmt.Sprintf("%s %s", *svc.Spec.IPFamilyPolicy, svc.Spec.IPFamilies); got != want || len(svc.Spec.ClusterIPs) != len(svc.Spec.IPFamilies) && svc.Spec.ClusterIP != "None" {
		t.Errorf("service %s has %s and %v, want %s", name, got, svc.Spec.ClusterIPs, want)
	}
	return svc
}

// TestDualStack: pods, services, names and policies of IPv4 and IPv6, by stock kubectl.
func TestDualStack(t *testing.T) {
	t.Parallel()
	d := newDual(t, pods4+","+pods6, services4+","+services6, nodes4+","+nodes6)
	t.Run("Pods", func(t *testing.T) { dualPodsReach(t, d) })
	t.Run("Services", func(t *testing.T) { dualServices(t, d) })
	t.Run("Names", func(t *testing.T) { dualNames(t, d) })
	t.Run("Policy", func(t *testing.T) { dualPolicy(t, d) })
	t.Run("Zones", func(t *testing.T) { dualZones(t, d) })
	t.Run("Restart", func(t *testing.T) { dualRestart(t, d) })
}

func dualPodsReach(t *testing.T, d *dual) {
	for _, p := range []*corev1.Pod{d.one, d.two, d.client} {
		ips := podIPs(p)
		if len(ips) != 2 || !netip.MustParsePrefix(pods4).Contains(netip.MustParseAddr(ips[0])) || !netip.MustParsePrefix(pods6).Contains(netip.MustParseAddr(ips[1])) || p.Status.PodIP != ips[0] || len(p.Status.HostIPs) != 2 {
			t.Fatalf("%s has %v of %v", p.Name, ips, p.Status.HostIPs)
		}
	}
	ips, hosts := podIPs(d.client), d.client.Status.HostIPs
	for _, to := range []*corev1.Pod{d.one, d.two} {
		for i, ip := range podIPs(to) {
			d.fetches(t, "asks", clientURL(ip, 8080), to.Name+" asked by "+ips[i]+"\n")
		}
	}
	contains(t, d.k.run(t, "exec", "asks", "--", "/server", "env"), "POD_IPS="+strings.Join(ips, ","), "HOST_IPS="+hosts[0].IP+","+hosts[1].IP)
	contains(t, d.k.run(t, "exec", "asks", "--", "/server", "cat", "/etc/hosts"), ips[0]+"\tasks", ips[1]+"\tasks")
	contains(t, d.k.run(t, "get", "node", "worker-2", "-o", "jsonpath={.spec.podCIDRs} {.status.addresses[*].address}"), `/24","fd00:10:52`, "10.51.0.12 fd00:10:51::c")
	contains(t, d.k.run(t, "describe", "pod", "asks"), "IPs:", "IP:  "+ips[0], "IP:  "+ips[1])
	d.fetches(t, "asks", clientURL("10.51.0.11", 8095), "one asked by")
	d.fetches(t, "asks", clientURL("fd00:10:51::b", 8095), "one asked by "+ips[1]+"\n")
}

func dualServices(t *testing.T, d *dual) {
	d.apply(t, d.ns, dualService("plain", "")+dualService("prefer", ", ipFamilyPolicy: PreferDualStack")+dualService("require", ", ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6, IPv4]")+
		dualService("six", ", ipFamilies: [IPv6]")+dualService("headless", ", clusterIP: None, ipFamilyPolicy: PreferDualStack")+
		dualService("port", ", type: NodePort, ipFamilyPolicy: PreferDualStack")+dualService("balancer", ", type: LoadBalancer, ipFamilyPolicy: PreferDualStack, externalTrafficPolicy: Local"))
	for name, want := range map[string]string{
		"plain": "SingleStack [IPv4]", "prefer": "PreferDualStack [IPv4 IPv6]", "require": "RequireDualStack [IPv6 IPv4]", "six": "SingleStack [IPv6]",
		"headless": "PreferDualStack [IPv4 IPv6]", "port": "PreferDualStack [IPv4 IPv6]",
	} {
		svc := d.families(t, name, want)
		for i, ip := range svc.Spec.ClusterIPs {
			if ip == "None" {
				continue
			}
			if !netip.MustParsePrefix(map[corev1.IPFamily]string{corev1.IPv4Protocol: services4, corev1.IPv6Protocol: services6}[svc.Spec.IPFamilies[i]]).Contains(netip.MustParseAddr(ip)) {
				t.Errorf("%s has %v", name, svc.Spec.ClusterIPs)
			}
			d.fetches(t, "asks", clientURL(ip, 80), " asked by")
		}
	}
	contains(t, d.k.run(t, "get", "endpointslices", "-l", "kubernetes.io/service-name=prefer", "-o", "jsonpath={.items[*].addressType}"), "IPv4", "IPv6")
	if r := d.k.try(dualService("bad", ", ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6]"), "apply", "-f", "-"); !strings.Contains(r.stderr, "spec.ipFamilyPolicy: Invalid value: \"SingleStack\": must be RequireDualStack or PreferDualStack when multiple IP families are specified") {
		t.Error(r)
	}
	// To both families and back.
	d.k.run(t, "patch", "service", "plain", "-p", `{"spec":{"ipFamilyPolicy":"PreferDualStack"}}`)
	second := d.families(t, "plain", "PreferDualStack [IPv4 IPv6]").Spec.ClusterIPs[1]
	d.fetches(t, "asks", clientURL(second, 80), " asked by")
	d.k.run(t, "patch", "service", "plain", "-p", `{"spec":{"ipFamilyPolicy":"SingleStack"}}`)
	d.families(t, "plain", "SingleStack [IPv4]")
	eventually(t, "the second address is gone", func() error {
		if r := d.k.try("", "exec", "asks", "--", "/server", "fetch", clientURL(second, 80)); r.code == 0 || !strings.Contains(r.stderr, "refused") {
			return errors.New(r.String())
		}
		return nil
	})
	hub, at := network.HubNetNS(d.id()), int(d.service(t, d.ns, "port").Spec.Ports[0].NodePort)
	d.reaches(t, hub, "10.51.0.11", at, "asked by 10.51.0.11\n")
	d.reaches(t, hub, "fd00:10:51::c", at, "asked by fd00:10:51::c\n")
	d.reaches(t, "", "127.0.0.1", at, "asked by")
	eventually(t, "the load balancer has the nodes' addresses", func() error {
		if got := d.k.run(t, "get", "service", "balancer", "-o", "jsonpath={.status.loadBalancer.ingress[*].ip}"); got != "10.51.0.11 fd00:10:51::b 10.51.0.12 fd00:10:51::c" {
			return errors.New(got)
		}
		return nil
	})
	d.reaches(t, hub, "fd00:10:51::b", 80, "one asked by fd00:10:51::1\n")
	check := netip.AddrPortFrom(netip.MustParseAddr("fd00:10:51::b"), uint16(d.service(t, d.ns, "balancer").Spec.HealthCheckNodePort)).String()
	if body, code, err := d.from(hub, check, "/healthz"); err != nil || code != 200 || !strings.Contains(body, `"localEndpoints":1`) {
		t.Errorf("health check: %s %d %v", body, code, err)
	}
}

// reaches is asks of an address and a port.
func (d *dual) reaches(t *testing.T, ns, ip string, port int, want string) {
	t.Helper()
	d.cluster.asks(t, ip, ns, netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port)).String(), want)
}

func dualNames(t *testing.T, d *dual) {
	prefer, six, plain := d.service(t, d.ns, "prefer").Spec.ClusterIPs, d.service(t, d.ns, "six").Spec.ClusterIP, d.service(t, d.ns, "plain").Spec.ClusterIP
	d.looksUp(t, "ip4", "prefer", prefer[0])
	d.looksUp(t, "ip6", "prefer", prefer[1])
	d.looksUp(t, "ip6", "six", six)
	d.looksUp(t, "ip4", "six", "")
	d.looksUp(t, "ip4", "plain", plain)
	d.looksUp(t, "ip6", "plain", "")
	d.looksUp(t, "ptr", prefer[1], "prefer."+d.ns+".svc.cluster.local.")
	d.looksUp(t, "ip6", "one.headless", podIPs(d.one)[1])
	d.looksUp(t, "ip4", "one.headless", podIPs(d.one)[0])
	d.looksUp(t, "ptr", podIPs(d.two)[1], "two.headless."+d.ns+".svc.cluster.local.")
	d.looksUp(t, "srv", "_http._tcp.headless."+d.ns+".svc.cluster.local", "one.headless."+d.ns+".svc.cluster.local.:8080 two.headless."+d.ns+".svc.cluster.local.:8080")
	d.looksUp(t, "ip6", "kube-dns.kube-system", "fd00:10:53::a")
	d.looksUp(t, "ip4", "kubernetes.default", "10.53.0.1")
	d.fetches(t, "asks", "http://six/client", " asked by "+podIPs(d.client)[1])
	// The same names at the other address.
	d.apply(t, d.ns, `apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  terminationGracePeriodSeconds: 0
  dnsPolicy: None
  dnsConfig: {nameservers: ["fd00:10:53::a"], searches: [`+d.ns+`.svc.cluster.local]}
  containers: [{name: c, image: "gitk8s.local/test/web:v1"}]
`)
	d.awaitPod(t, d.ns, "own", "it is ready", ready)
	if got := strings.TrimSpace(d.k.run(t, "exec", "own", "--", "/server", "lookup", "host", "prefer")); !strings.Contains(got, prefer[0]) || !strings.Contains(got, prefer[1]) {
		t.Errorf("prefer is %q", got)
	}
}

// dualPolicy: what holds for a pod holds for all its addresses.
func dualPolicy(t *testing.T, d *dual) {
	w := wire{t, d.cluster}
	flows := func(from, to *corev1.Pod, want ...bool) (out []flow) {
		for i, ip := range podIPs(to) {
			out = append(out, flow{from, netip.AddrPortFrom(netip.MustParseAddr(ip), 8080).String(), want[i]})
		}
		return out
	}
	w.settles("no policy", slices.Concat(flows(d.client, d.one, true, true), flows(d.two, d.one, true, true))...)
	policy := func(rules string) string {
		return "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: one}\nspec: {podSelector: {matchExpressions: [{key: app, operator: In, values: [web]}]}, policyTypes: [Ingress], ingress: " + rules + "}\n"
	}
	d.apply(t, d.ns, policy("[]"))
	w.settles("nobody", slices.Concat(flows(d.client, d.one, false, false), flows(d.two, d.one, false, false), flows(d.one, d.client, true, true))...)
	d.apply(t, d.ns, policy("[{from: [{podSelector: {matchLabels: {app: asks}}}], ports: [{port: http}]}]"))
	w.settles("one of them", slices.Concat(flows(d.client, d.one, true, true), flows(d.two, d.one, false, false))...)
	d.apply(t, d.ns, policy(fmt.Sprintf(`[{from: [{ipBlock: {cidr: %s, except: ["%s/128"]}}]}]`, pods6, podIPs(d.two)[1])))
	w.settles("an IPv6 block", slices.Concat(flows(d.client, d.one, false, true), flows(d.two, d.one, false, false))...)
	contains(t, d.ok(t, "net", "trace", "-n", d.ns, "asks", "["+podIPs(d.one)[1]+"]:8080"), ": allowed")
	contains(t, d.ok(t, "net", "trace", "-n", d.ns, "asks", podIPs(d.one)[0]+":8080"), ": denied")
	d.k.run(t, "delete", "networkpolicy", "one")
	w.settles("none again", flows(d.two, d.one, true, true)...)
}

// dualZones: each node's zone gets its share of the endpoints, of both families, as long as
// there are enough.
func dualZones(t *testing.T, d *dual) {
	d.k.run(t, "label", "node", "worker-1", "topology.kubernetes.io/zone=east")
	auto := strings.Replace(dualService("zoned", ", ipFamilyPolicy: PreferDualStack, trafficDistribution: PreferSameZone"), "{name: zoned}", `{name: zoned, annotations: {service.kubernetes.io/topology-mode: Auto}}`, 1)
	if r := d.k.try(auto, "apply", "-f", "-"); r.code != 0 || !strings.Contains(r.stderr, "Warning: spec.trafficDistribution: not acted on, because of the annotation service.kubernetes.io/topology-mode") {
		t.Error(r)
	}
	hints := func(want string) {
		t.Helper()
		eventually(t, "hints "+want, func() error {
			if got := d.k.run(t, "get", "endpointslices", "-l", "kubernetes.io/service-name=zoned", "-o", `jsonpath={range .items[*]}{range .endpoints[*]}{.targetRef.name}={.hints.forZones[*].name} {end}{end}`); got != want+" "+want+" " {
				return errors.New(got)
			}
			return nil
		})
	}
	d.eventOf(t, d.ns, "zoned", "TopologyAwareHintsDisabled", "node worker-2 has no label topology.kubernetes.io/zone")
	hints("one= two=")
	d.k.run(t, "label", "node", "worker-2", "topology.kubernetes.io/zone=west")
	hints("one=east two=west")
	d.eventOf(t, d.ns, "zoned", "TopologyAwareHintsEnabled", "addressType: IPv6")
	for _, ip := range d.service(t, d.ns, "zoned").Spec.ClusterIPs {
		for node, pod := range map[string]string{"worker-1": "one", "worker-2": "two"} {
			ns, in := network.NodeNetNS(d.id(), node), 0
			eventually(t, node+" keeps to its zone", func() error { // a chance of 1 in 64 without hints
				for in = 0; in < 6; in++ {
					if body, _, err := d.from(ns, netip.AddrPortFrom(netip.MustParseAddr(ip), 80).String(), "/client"); err != nil || !strings.HasPrefix(body, pod+" asked by ") {
						return fmt.Errorf("%q %w", body, err)
					}
				}
				return nil
			})
		}
	}
	// One endpoint is too few for two zones.
	d.k.run(t, "label", "pod", "two", "app=else", "--overwrite")
	hints("one=")
	d.eventOf(t, d.ns, "zoned", "TopologyAwareHintsDisabled", "1 ready endpoints are not enough for 2 zones")
	d.reaches(t, network.NodeNetNS(d.id(), "worker-2"), d.service(t, d.ns, "zoned").Spec.ClusterIPs[1], 80, "one asked by")
	d.k.run(t, "label", "pod", "two", "app=web", "--overwrite")
	d.k.run(t, "annotate", "service", "zoned", "service.kubernetes.io/topology-mode-")
	d.eventOf(t, d.ns, "zoned", "TopologyAwareHintsDisabled", "no longer")
	hints("one=east two=west") // by trafficDistribution now
	d.k.run(t, "delete", "service", "zoned")
}

// dualRestart: another range is refused, and pods outlive a server that is killed.
func dualRestart(t *testing.T, d *dual) {
	before := podIPs(d.one)
	d.kill()
	r := d.run("up", "--cluster-cidr", pods4, "--service-cidr", services4, "--node-network-cidr", nodes4, "--api-port", "0", "--git-port", "0", "--registry-port", "0", "--http-port", "0", "--https-port", "0")
	if r.code == 0 || !strings.Contains(r.stderr, "begun with --cluster-cidr="+pods4+","+pods6) {
		t.Error(r)
	}
	if err := d.start(); err != nil {
		t.Fatal(err)
	}
	was := d.one
	d.look(t)
	if d.one.UID != was.UID || !slices.Equal(podIPs(d.one), before) || d.one.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("%s %v %+v", d.one.UID, podIPs(d.one), d.one.Status.ContainerStatuses)
	}
	d.fetches(t, "asks", clientURL(before[1], 8080), "one asked by "+podIPs(d.client)[1])
}

// TestDualStackMachines: workers that are enrolled with both of their addresses.
func TestDualStackMachines(t *testing.T) {
	t.Parallel()
	prefixes := func(list ...string) (out []netip.Prefix) {
		for _, text := range list {
			out = append(out, netip.MustParsePrefix(text))
		}
		return out
	}
	all := machinesIn(t, 3, network.Ranges{Nodes: prefixes(nodes4, nodes6), Pods: prefixes(pods4, pods6), Services: prefixes(services4, services6)})
	server, workers := all[0], map[string]*machine{"one": all[1], "two": all[2]}
	c := server.cluster
	if err := errors.Join(c.serve("--listen", server.ip.String(), "--cluster-cidr", pods4+","+pods6, "--service-cidr", services4+","+services6), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	if r := c.run("server", "enroll", "half", all[1].ip.String()); r.code == 0 || !strings.Contains(r.stderr, "has no IPv6 address") {
		t.Error(r)
	}
	for name, m := range workers {
		m.enroll(t, c, name, nil, m.ips...)
	}
	startWorkers(t, c, workers)
	d := &dual{cluster: c, ns: c.namespace(t, "machines")}
	d.k = kubectls(c)["own"].in(d.ns)
	c.apply(t, d.ns, strings.NewReplacer("worker-1", "one", "worker-2", "two").Replace(dualPods(d.ns))+dualService("web", ", ipFamilyPolicy: PreferDualStack"))
	d.look(t)
	for i, ip := range podIPs(d.one) {
		d.fetches(t, "asks", clientURL(ip, 8080), "one asked by "+podIPs(d.client)[i]+"\n")
	}
	for _, ip := range d.families(t, "web", "PreferDualStack [IPv4 IPv6]").Spec.ClusterIPs {
		d.fetches(t, "asks", clientURL(ip, 80), " asked by ")
	}
	if _, err := c.k.CoreV1().Services(d.ns).ProxyGet("http", "web", "http", "/client", nil).DoRaw(t.Context()); err != nil {
		t.Error("the API's proxy:", err)
	}
}

// TestIPv6Only: a cluster without IPv4.
func TestIPv6Only(t *testing.T) {
	t.Parallel()
	d := newDual(t, pods6, services6, nodes6)
	if ips := podIPs(d.one); len(ips) != 1 || !netip.MustParsePrefix(pods6).Contains(netip.MustParseAddr(ips[0])) {
		t.Fatalf("%v", ips)
	}
	own := podIPs(d.client)[0]
	for _, p := range []*corev1.Pod{d.one, d.two} {
		d.fetches(t, "asks", clientURL(podIPs(p)[0], 8080), p.Name+" asked by "+own+"\n")
	}
	d.apply(t, d.ns, dualService("web", ", type: NodePort"))
	svc := d.families(t, "web", "SingleStack [IPv6]")
	d.fetches(t, "asks", clientURL(svc.Spec.ClusterIP, 80), " asked by "+own+"\n")
	d.fetches(t, "asks", "http://web."+d.ns+"/client", " asked by "+own+"\n")
	d.looksUp(t, "ip6", "web", svc.Spec.ClusterIP)
	d.looksUp(t, "ip4", "web", "")
	contains(t, d.k.run(t, "exec", "asks", "--", "/server", "env"), "KUBERNETES_SERVICE_HOST=fd00:10:53::1", "KUBERNETES_PORT=tcp://[fd00:10:53::1]:443")
	d.reaches(t, network.HubNetNS(d.id()), "fd00:10:51::b", int(svc.Spec.Ports[0].NodePort), "asked by fd00:10:51::b\n")
	d.reaches(t, "", "127.0.0.1", int(svc.Spec.Ports[0].NodePort), "asked by")
	if r := d.k.try(dualService("bad", ", ipFamilyPolicy: RequireDualStack"), "apply", "-f", "-"); !strings.Contains(r.stderr, "this cluster is not configured for dual-stack services") {
		t.Error(r)
	}
	d.apply(t, d.ns, ingressManifest("web", "six.ingress.test", ""))
	door{base: d.info.IngressHTTP}.says(t, "six.ingress.test", "/client", "asked by")
	contains(t, d.k.run(t, "logs", "one"), "listening")
	if _, err := d.cluster.k.CoreV1().Services(d.ns).ProxyGet("http", "web", "http", "/client", nil).DoRaw(t.Context()); err != nil {
		t.Error("the API's proxy:", err)
	}
	w := wire{t, d.cluster}
	to := netip.AddrPortFrom(netip.MustParseAddr(podIPs(d.one)[0]), 8080).String()
	d.apply(t, d.ns, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: one}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: asks}}}]}]}\n")
	w.settles("a policy", flow{d.client, to, true}, flow{d.two, to, false})
	if nodes, err := d.cluster.k.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err != nil || len(nodes.Items) != 2 || len(nodes.Items[0].Spec.PodCIDRs) != 1 {
		t.Errorf("%v", err)
	}
}
