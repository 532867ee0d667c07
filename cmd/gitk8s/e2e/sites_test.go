package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// sites are links of their own, with a router between that knows nothing of pods.
type sites struct {
	t      *testing.T
	number int64  // of these, for names
	prefix string // of network namespaces
	router *netlink.Handle
}

// namespace makes a network namespace that goes with the test, and returns it and its
// path.
func (s *sites) namespace(name string) (netns.NsHandle, string) {
	s.t.Helper()
	name = s.prefix + name
	type made struct {
		ns  netns.NsHandle
		err error
	}
	result := make(chan made, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here, in the new namespace
		ns, err := netns.NewNamed(name)
		result <- made{ns, err}
	}()
	m := <-result
	if m.err != nil {
		s.t.Fatal(m.err)
	}
	s.t.Cleanup(func() {
		if err := errors.Join(m.ns.Close(), netns.DeleteNamed(name)); err != nil {
			s.t.Error(err)
		}
	})
	return m.ns, "/run/netns/" + name
}

func (s *sites) handle(ns netns.NsHandle) *netlink.Handle {
	s.t.Helper()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(h.Close)
	return h
}

// siteIP is address n of a site; .1 is the router's.
func siteIP(site, n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 201, byte(site), byte(n)})
}

// siteIP6 is the same of IPv6.
func siteIP6(site, n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfd, 0, 0, 0x10, 0x02, 0x01, 7: byte(site), 15: byte(n)})
}

// newSites makes n sites, with addresses of both families.
func newSites(t *testing.T, n int) *sites {
	t.Helper()
	s := &sites{t: t, number: links.Add(1)}
	s.prefix = fmt.Sprintf("gitk8s-e2e-%d-%d-", os.Getpid(), s.number)
	ns, _ := s.namespace("router")
	s.router = s.handle(ns)
	for site := range n {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprint("site", site)
		bridge := &netlink.Bridge{LinkAttrs: attrs}
		if err := s.router.LinkAdd(bridge); err != nil {
			t.Fatal(err)
		}
		s.address(s.router, bridge, siteIP(site, 1))
		s.address(s.router, bridge, siteIP6(site, 1))
	}
	forwards := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends here
		forwards <- errors.Join(netns.Set(ns), network.Forward())
	}()
	if err := <-forwards; err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *sites) address(h *netlink.Handle, link netlink.Link, ip netip.Addr) {
	s.t.Helper()
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(24, 32)}}
	if ip.Is6() {
		addr.Mask, addr.Flags = net.CIDRMask(64, 128), unix.IFA_F_NODAD
	}
	if err := errors.Join(h.AddrReplace(link, addr), h.LinkSetUp(link)); err != nil {
		s.t.Fatal(err)
	}
}

// machine makes one at a site, with a default route by the router.
func (s *sites) machine(name string, site, n int) (*machine, func(n int)) {
	s.t.Helper()
	ns, path := s.namespace(name)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
	if err := s.router.LinkAdd(veth); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { // a process that lingers would keep the namespace
		if err := s.router.LinkDel(veth); err != nil {
			s.t.Error(err)
		}
	})
	bridge, err := s.router.LinkByName(fmt.Sprint("site", site))
	if err == nil {
		err = errors.Join(s.router.LinkSetMaster(veth, bridge), s.router.LinkSetUp(veth))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	h := s.handle(ns)
	lo, loErr := h.LinkByName("lo")
	uplink, err := h.LinkByName("eth0")
	if err = errors.Join(loErr, err); err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	move := func(n int) {
		s.t.Helper()
		old, err := h.AddrList(uplink, netlink.FAMILY_ALL)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, a := range old {
			if a.IP.IsLinkLocalUnicast() {
				continue
			}
			if err := h.AddrDel(uplink, &a); err != nil {
				s.t.Fatal(err)
			}
		}
		for ip, router := range map[netip.Addr]netip.Addr{siteIP(site, n): siteIP(site, 1), siteIP6(site, n): siteIP6(site, 1)} {
			s.address(h, uplink, ip)
			everywhere := &net.IPNet{IP: make(net.IP, len(ip.AsSlice())), Mask: make(net.IPMask, len(ip.AsSlice()))}
			if err := h.RouteReplace(&netlink.Route{Dst: everywhere, Gw: router.AsSlice()}); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	move(n)
	c := newCluster(fmt.Sprintf("site-%d-%s", s.number, name))
	c.netns = path
	m := &machine{cluster: c, ip: siteIP(site, n), ips: []netip.Addr{siteIP(site, n), siteIP6(site, n)}, bin: suite.bin}
	s.t.Cleanup(func() { m.clean(s.t) })
	return m, move
}

// TestSites runs the control plane and a worker at one site and another worker at a
// second one, behind a router.
func TestSites(t *testing.T) {
	t.Parallel()
	s := newSites(t, 2)
	server, _ := s.machine("server", 0, 5)
	one, _ := s.machine("one", 0, 11)
	two, move := s.machine("two", 1, 12)
	workers := map[string]*machine{"one": one, "two": two}
	c := server.cluster
	if err := c.serve("--listen", server.ip.String()); err != nil {
		t.Fatal(err)
	}
	if err := c.pushImages(); err != nil {
		t.Fatal(err)
	}
	for name, m := range workers {
		m.enroll(t, c, name, nil)
	}
	startWorkers(t, c, workers)
	ns := c.namespace(t, "sites")
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
      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}]
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
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:
  nodeName: one
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: gitk8s.local/test/web:v1}]
`)
	pods := map[string]*corev1.Pod{}
	for _, p := range c.awaitPods(t, ns, "app=web", "both are Ready", func(pods []*corev1.Pod) bool {
		return len(pods) == 2 && ready(pods[0]) && ready(pods[1])
	}) {
		pods[p.Spec.NodeName] = p
	}
	if len(pods) != 2 {
		t.Fatalf("the pods are not at two sites: %v", pods)
	}
	c.awaitPod(t, ns, "other", "it is Ready", ready)
	fetch := func(from, url string) (string, error) {
		r := c.run("kubectl", "exec", "-n", ns, from, "--", "/server", "fetch", url)
		if r.code != 0 {
			return "", errors.New(r.String())
		}
		return r.stdout, nil
	}
	everything := func(t *testing.T) {
		t.Helper()
		for _, pair := range [][2]string{{"one", "two"}, {"two", "one"}} {
			from, to := pods[pair[0]], pods[pair[1]]
			eventually(t, "pod to pod, "+pair[0]+" to "+pair[1], func() error {
				out, err := fetch(from.Name, "http://"+to.Status.PodIP+":8080/")
				if err == nil && !strings.Contains(out, to.Name) {
					err = errors.New(out)
				}
				return err
			})
			eventually(t, "pod to pod through the Service, "+pair[0]+" to "+pair[1], func() error {
				out, err := fetch(from.Name, "http://web."+ns+"/")
				if err == nil && !strings.Contains(out, to.Name) {
					err = errors.New("so far only by " + out)
				}
				return err
			})
			// A process of the machine itself, as an Ingress or a webhook's caller is.
			eventually(t, "machine to pod, "+pair[0]+" to "+pair[1], func() error {
				r := workers[pair[0]].exec("", "", filepath.Join(suite.dir, "server"), "fetch", "http://"+to.Status.PodIP+":8080/")
				if !strings.Contains(r.stdout, to.Name) {
					return errors.New(r.String())
				}
				return nil
			})
			contains(t, c.kubectl(t, "logs", "-n", ns, to.Name), "listening v1")
			// The API, at the server's site, from a pod.
			contains(t, c.kubectl(t, "exec", "-n", ns, from.Name, "--", "/server", "whoami"), "system:serviceaccount:"+ns+":default")
		}
		c.answers(t, ns, "web", "v1") // from the server to either pod
	}
	everything(t)
	t.Run("its tunnel is where it has to be", func(t *testing.T) {
		for m, want := range map[*machine]bool{one: true, two: true, server: true} {
			if links := m.exec("", "", "cat", "/proc/self/net/dev").stdout; strings.Contains(links, "gitk8s-vxlan") != want {
				t.Errorf("%s: %s", m.name, links)
			}
		}
	})
	t.Run("policies hold across it", func(t *testing.T) {
		if _, err := fetch("other", "http://"+pods["two"].Status.PodIP+":8080/"); err != nil {
			t.Fatal(err)
		}
		c.apply(t, ns, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: web}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}, {ipBlock: {cidr: 10.201.0.0/16}}]}]}\n")
		eventually(t, "others are kept out", func() error {
			if out, err := fetch("other", "http://"+pods["two"].Status.PodIP+":8080/"); err == nil {
				return fmt.Errorf("answered: %s", out)
			}
			return nil
		})
		everything(t)
	})
	t.Run("a worker is killed and started", func(t *testing.T) {
		kill9(t, two.worker.cmd.Process.Pid)
		<-two.worker.done
		for _, pair := range [][2]string{{"one", "two"}} {
			if _, err := fetch(pods[pair[0]].Name, "http://"+pods[pair[1]].Status.PodIP+":8080/"); err != nil {
				t.Error(err)
			}
		}
		two.startWorker(t, "two")
		everything(t)
	})
	t.Run("a machine comes back with another address", func(t *testing.T) {
		before := lifeOf(pods["two"])
		if err := two.worker.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-two.worker.done
		move(77)
		two.ip = siteIP(1, 77)
		two.enroll(t, c, "two", nil)
		two.startWorker(t, "two")
		await(t, c, nodesGVR, "", "two", "it says its new address", func(n *corev1.Node) bool {
			return nodeReady(n) && strings.Contains(fmt.Sprint(n.Status.Addresses), two.ip.String())
		})
		everything(t)
		if _, err := fetch("other", "http://"+pods["two"].Status.PodIP+":8080/"); err == nil {
			t.Error("the policy does not hold any more")
		}
		if now := c.awaitPod(t, ns, pods["two"].Name, "it is Ready", ready); lifeOf(now) != before {
			t.Errorf("the container changed: %+v, before %+v", lifeOf(now), before)
		}
	})
}

// TestSitesDualStack and TestSitesIPv6: pods' IPv6 addresses are reached at the other site,
// by their services and names, from machines, from the server and by policies.
func TestSitesDualStack(t *testing.T) {
	sitesOf(t, 5, pods4+","+pods6, services4+","+services6, func(m *machine) []netip.Addr { return m.ips })
}

func TestSitesIPv6(t *testing.T) {
	sitesOf(t, 6, pods6, services6, func(m *machine) []netip.Addr { return m.ips[1:] })
}

func sitesOf(t *testing.T, number int, podRange, serviceRange string, ips func(*machine) []netip.Addr) {
	t.Parallel()
	s := newSites(t, 2)
	server, _ := s.machine("server", 0, number)
	one, _ := s.machine("one", 0, 11)
	two, _ := s.machine("two", 1, 12)
	workers := map[string]*machine{"one": one, "two": two}
	c := server.cluster
	if err := errors.Join(c.serve("--listen", ips(server)[0].String(), "--cluster-cidr", podRange, "--service-cidr", serviceRange), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	for name, m := range workers {
		m.enroll(t, c, name, nil, ips(m)...)
	}
	startWorkers(t, c, workers)
	d := &dual{cluster: c, ns: c.namespace(t, "sites")}
	d.k = kubectls(c)["own"].in(d.ns)
	policy := ", ipFamilyPolicy: PreferDualStack"
	c.apply(t, d.ns, strings.NewReplacer("worker-1", "one", "worker-2", "two").Replace(dualPods(d.ns))+dualService("web", policy+", type: NodePort"))
	d.look(t)
	svc := d.service(t, d.ns, "web")
	for i, ip := range podIPs(d.one) {
		own, node := podIPs(d.client)[i], ips(one)[i].String()
		d.fetches(t, "asks", clientURL(ip, 8080), "one asked by "+own+"\n")
		d.fetches(t, "asks", clientURL(node, 8095), "one asked by "+own+"\n") // a port of the other machine
		d.fetches(t, "asks", clientURL(svc.Spec.ClusterIPs[i], 80), "one asked by "+own+"\n")
		d.reaches(t, two.netns, ip, 8080, "one asked by "+ips(two)[i].String()+"\n")
		d.reaches(t, two.netns, svc.Spec.ClusterIPs[i], 80, "one asked by")
		d.reaches(t, server.netns, ips(two)[i].String(), int(svc.Spec.Ports[0].NodePort), "one asked by "+ips(two)[i].String()+"\n")
	}
	d.fetches(t, "asks", "http://web."+d.ns+"/client", "one asked by")
	contains(t, d.k.run(t, "exec", "asks", "--", "/server", "whoami"), "system:serviceaccount:"+d.ns+":default")
	for _, name := range []string{"one", "two"} {
		contains(t, d.k.run(t, "logs", name), "listening")
		if _, err := c.k.CoreV1().Pods(d.ns).ProxyGet("http", name, "8080", "/client", nil).DoRaw(t.Context()); err != nil {
			t.Error("the API's proxy:", err)
		}
	}
	policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: one}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: %s}}}]}]}\n"
	c.apply(t, d.ns, fmt.Sprintf(policy, "asks"))
	held := func(from, url string) {
		t.Helper()
		eventually(t, from+" is kept out of "+url, func() error {
			if r := d.k.try("", "exec", from, "--", "/server", "fetch", url); r.code == 0 {
				return errors.New(r.String())
			}
			return nil
		})
	}
	for _, ip := range podIPs(d.one) {
		held("two", clientURL(ip, 8080))
		d.fetches(t, "asks", clientURL(ip, 8080), "one asked by")
	}
	c.apply(t, d.ns, fmt.Sprintf(policy, "nobody"))
	for _, ip := range podIPs(d.one) {
		held("asks", clientURL(ip, 8080))
	}
}
