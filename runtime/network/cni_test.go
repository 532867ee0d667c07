package network

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
)

// pluginDir is where Debian's containernetworking-plugins are.
const pluginDir = "/usr/lib/cni"

// cniNode is a node whose pods' network Debian's plugins make.
type cniNode struct {
	*sites
	cfg  CNIConfig
	cni  *CNI
	data string // of host-local
}

func newCNINode(t *testing.T) *cniNode {
	t.Helper()
	if _, err := os.Stat(filepath.Join(pluginDir, "bridge")); err != nil {
		t.Skipf("%v: install containernetworking-plugins (`make test-deps`)", err)
	}
	s := newSites(t, 0)
	n := &cniNode{sites: s, data: t.TempDir()}
	n.cfg = CNIConfig{Dir: t.TempDir(), NetNS: s.nodes[0].NetNS, Services: rangesIPv4.Services, NodeIPs: s.nodes[0].IPs, ConfDir: t.TempDir(), BinDirs: []string{t.TempDir(), pluginDir}}
	n.open()
	t.Cleanup(func() {
		for uid := range n.cni.pods {
			if err := n.cni.Teardown(context.Background(), uid); err != nil {
				t.Error(err)
			}
		}
		if HasRecords(n.cfg.Dir) {
			t.Error("records are left")
		}
	})
	return n
}

// open is what a worker does when it starts.
func (n *cniNode) open() {
	n.t.Helper()
	var err error
	if n.cni, err = OpenCNI(n.cfg); err != nil {
		n.t.Fatal(err)
	}
}

// configure writes the network's configuration: a bridge, and portmap with nftables or
// iptables as the plugin has it.
func (n *cniNode) configure(plugins ...map[string]any) {
	n.t.Helper()
	b, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "test", "plugins": plugins})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.cfg.ConfDir, "10-test.conflist"), b, 0o600)
	}
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *cniNode) bridge() map[string]any {
	return map[string]any{
		"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": n.data, "ranges": [][]any{{map[string]any{"subnet": "10.88.7.0/24"}}}},
	}
}

// leases are the addresses that host-local has given out.
func (n *cniNode) leases() (out []string) {
	n.t.Helper()
	files, err := filepath.Glob(filepath.Join(n.data, "test", "10.*"))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, f := range files {
		out = append(out, filepath.Base(f))
	}
	return out
}

func (n *cniNode) setup(name string) (string, netip.Addr) {
	n.t.Helper()
	ns, ip, err := n.cni.Setup(n.t.(*testing.T).Context(), "uid-"+name, "default", name)
	if err != nil {
		n.t.Fatal(err)
	}
	return ns, ip
}

func TestCNI(t *testing.T) {
	n := newCNINode(t)
	node := n.nodes[0].NetNS
	n.configure(n.bridge())
	if err := n.cni.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	aNS, a := n.setup("a")
	bNS, b := n.setup("b")
	if !netip.MustParsePrefix("10.88.7.0/24").Contains(a) || a == b {
		t.Fatal(a, b)
	}
	n.serve(aNS, netip.AddrPortFrom(a, 8080), "a")
	n.serve(bNS, netip.AddrPortFrom(b, 8080), "b")
	expect(t, "pod to pod", aNS, netip.AddrPortFrom(b, 8080), "b "+a.String())
	expect(t, "node to pod", node, netip.AddrPortFrom(a, 8080), "a 10.88.7.1")
	if ns, ip := n.setup("a"); ns != aNS || ip != a {
		t.Errorf("again: %s %s", ns, ip)
	}
	t.Run("our services", func(t *testing.T) {
		p, err := NewProxy(node, rangesIPv4.Services)
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		vip := netip.MustParseAddr("10.43.0.88")
		var svcs []Service
		for _, proto := range []Protocol{TCP, UDP} {
			svcs = append(svcs, Service{IP: vip, Port: 80, Proto: proto, Endpoints: []netip.AddrPort{netip.AddrPortFrom(b, 8080)}},
				Service{IP: AnyNodeAddress, Port: 30080, Proto: proto, Endpoints: []netip.AddrPort{netip.AddrPortFrom(b, 8080)}, Masquerade: true})
		}
		if err := p.Apply(State{Services: svcs}); err != nil {
			t.Fatal(err)
		}
		expect(t, "node to service", node, netip.AddrPortFrom(vip, 80), "b "+n.nodes[0].IPs[0].String())
		expect(t, "stranger to node port", n.router, netip.AddrPortFrom(n.nodes[0].IPs[0], 30080), "b 10.88.7.1")
		if err := p.Remove(); err != nil {
			t.Error(err)
		}
	})
	t.Run("a worker that starts anew", func(t *testing.T) {
		n.open()
		if ns, ip := n.setup("a"); ns != aNS || ip != a {
			t.Errorf("%s %s, want %s %s", ns, ip, aNS, a)
		}
		if err := n.cni.Check(t.Context()); err != nil {
			t.Error(err)
		}
		expect(t, "pod to pod", aNS, netip.AddrPortFrom(b, 8080), "b "+a.String())
		if err := n.cni.Collect(t.Context()); err != nil || len(n.leases()) != 2 {
			t.Errorf("%v, leases %v", err, n.leases())
		}
		// The plugin notices that a pod has lost its way out.
		h := n.handle(bNS)
		routes, err := h.RouteList(n.link(bNS, podLink), netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if r.Gw != nil {
				err = h.RouteDel(&r)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := n.cni.Check(t.Context()); err == nil || !strings.Contains(err.Error(), "default/b") {
			t.Errorf("%v", err)
		}
	})
	t.Run("is not as it was made", func(t *testing.T) {
		h := n.handle(aNS)
		link := n.link(aNS, podLink)
		addrs, err := h.AddrList(link, netlink.FAMILY_V4)
		if err != nil || len(addrs) == 0 {
			t.Fatal(addrs, err)
		}
		if err := h.AddrDel(link, &addrs[0]); err != nil {
			t.Fatal(err)
		}
		// Its address is gone: it gets a network anew.
		ns, ip := n.setup("a")
		if ns != aNS || len(n.leases()) != 2 {
			t.Errorf("%s %s, leases %v", ns, ip, n.leases())
		}
		a = ip
	})
	t.Run("the end of a pod, with another configuration by now", func(t *testing.T) {
		if err := os.Remove(filepath.Join(n.cfg.ConfDir, "10-test.conflist")); err != nil {
			t.Fatal(err)
		}
		n.open()
		if err := n.cni.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "NetworkPluginNotReady") || !strings.Contains(err.Error(), n.cfg.ConfDir) {
			t.Error(err)
		}
		for range 2 {
			if err := n.cni.Teardown(t.Context(), "uid-b"); err != nil {
				t.Fatal(err)
			}
		}
		if left := n.leases(); len(left) != 1 || left[0] != a.String() || isNetNS(bNS) {
			t.Errorf("leases %v, namespace %v", left, isNetNS(bNS))
		}
		// After a restart of the machine the namespace is gone, and the address is not.
		if err := deleteNetNS(aNS); err != nil {
			t.Fatal(err)
		}
		if err := n.cni.Teardown(t.Context(), "uid-a"); err != nil {
			t.Fatal(err)
		}
		if left := n.leases(); len(left) > 0 {
			t.Errorf("leases %v", left)
		}
	})
}

// What a pod that is gone without a word had is freed when the worker looks.
func TestCNICollectsGarbage(t *testing.T) {
	n := newCNINode(t)
	n.configure(n.bridge())
	n.setup("stays")
	ns, _ := n.setup("gone")
	// The record is lost, the plugins' own results are not.
	if err := os.Remove(n.cni.file("uid-gone")); err != nil {
		t.Fatal(err)
	}
	n.open()
	if err := n.cni.Collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := n.leases(); len(left) != 1 {
		t.Errorf("leases %v", left)
	}
	if err := deleteNetNS(ns); err != nil {
		t.Error(err)
	}
}

func TestCNIHostPorts(t *testing.T) {
	if _, err := exec.LookPath("iptables"); err != nil {
		t.Skipf("%v, and portmap needs it: install iptables (`make test-deps`)", err)
	}
	n := newCNINode(t)
	n.configure(n.bridge(), map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true})
	n.cni.MapPorts("uid-a", []PortMapping{{HostPort: 8888, ContainerPort: 8080, Protocol: "tcp"}, {HostPort: 8888, ContainerPort: 8080, Protocol: "udp"}})
	ns, ip := n.setup("a")
	n.serve(ns, netip.AddrPortFrom(ip, 8080), "a")
	at := netip.AddrPortFrom(n.nodes[0].IPs[0], 8888)
	expect(t, "stranger to host port", n.router, at, "a "+siteIP(0, 1).String())
	n.open() // DEL needs the ports again
	if err := n.cni.Teardown(t.Context(), "uid-a"); err != nil {
		t.Fatal(err)
	}
	ns, ip = n.setup("b")
	n.serve(ns, netip.AddrPortFrom(ip, 8080), "b")
	if got := ask(n.router, "tcp", at); !strings.HasPrefix(got, "error") {
		t.Errorf("the port is still open: %q", got)
	}
}

func TestCNIErrors(t *testing.T) {
	n := newCNINode(t)
	setup := func() error {
		_, _, err := n.cni.Setup(t.Context(), "uid-x", "default", "x")
		return err
	}
	want := func(what string, err error, texts ...string) {
		t.Helper()
		for _, text := range texts {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v lacks %q", what, err, text)
			}
		}
	}
	want("no configuration", setup(), "default/x", "no network config found in "+n.cfg.ConfDir)
	n.configure(map[string]any{"type": "gitk8s-missing"})
	want("no such plugin", setup(), `failed to find plugin "gitk8s-missing" in path`, pluginDir)
	script := filepath.Join(n.cfg.BinDirs[0], "gitk8s-failing")
	const failing = "#!/bin/sh\ncat >/dev/null\n[ $CNI_COMMAND = ADD ] || exit 0\necho '{\"cniVersion\": \"1.0.0\", \"code\": 100, \"msg\": \"out of luck\", \"details\": \"for '$K8S_ARGS$CNI_IFNAME'\"}'\nexit 1\n"
	if err := os.WriteFile(script, []byte(failing), 0o700); err != nil {
		t.Fatal(err)
	}
	n.configure(n.bridge(), map[string]any{"type": "gitk8s-failing"})
	err := setup()
	want("a plugin that fails", err, "out of luck", "for eth0")
	if left := n.leases(); len(left) > 0 || HasRecords(n.cfg.Dir) {
		t.Errorf("leases %v, records %v", left, HasRecords(n.cfg.Dir))
	}
	if err := os.WriteFile(filepath.Join(n.cfg.ConfDir, "05-bad.conflist"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	want("a file that is none", n.cni.Ready(t.Context()), "05-bad.conflist")
	if err := os.Remove(filepath.Join(n.cfg.ConfDir, "05-bad.conflist")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := n.cni.Setup(t.Context(), "../x", "default", "x"); err == nil {
		t.Error("a bad uid")
	}
	// Those that come at once get an address each.
	n.configure(n.bridge())
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			if _, _, err := n.cni.Setup(t.Context(), fmt.Sprint("uid-", i), "default", fmt.Sprint(i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if left := n.leases(); len(left) != 5 {
		t.Errorf("leases %v", left)
	}
}
