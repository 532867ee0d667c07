package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gitk8s.dev/gitk8s/runtime/network"
)

// serveAt answers in a network namespace with a text and who asked.
func serveAt(t *testing.T, ns, at, text string) (address string) {
	t.Helper()
	l, err := network.ListenIn(ns, "tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprintf(w, "%s asked by %s\n", text, host)
	}))
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return at
}

// TestPodEgress: the pods of `up` reach what its machine reaches, by both families, which is another machine
// here, and nothing of the machine's loopback; and nothing at all if so asked.
func TestPodEgress(t *testing.T) {
	t.Parallel()
	all := machinesIn(t, 2, network.Ranges{Nodes: []netip.Prefix{netip.MustParsePrefix("10.41.0.0/24"), netip.MustParsePrefix("fd00:10:41::/64")}})
	m, other := all[0], all[1]
	const outside, outside6 = "192.0.2.7", "[2001:db8:7::7]"
	addrs := []*netlink.Addr{
		{IPNet: &net.IPNet{IP: net.ParseIP(outside).To4(), Mask: net.CIDRMask(32, 32)}},
		{IPNet: &net.IPNet{IP: net.ParseIP(strings.Trim(outside6, "[]")), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD},
	}
	changes := map[string]func(*netlink.Handle) error{
		other.netns: func(h *netlink.Handle) error {
			lo, err := h.LinkByName("lo")
			return errors.Join(err, h.AddrAdd(lo, addrs[0]), h.AddrAdd(lo, addrs[1]))
		},
		m.netns: func(h *netlink.Handle) (err error) {
			for i, a := range addrs {
				err = errors.Join(err, h.RouteAdd(&netlink.Route{Dst: a.IPNet, Gw: other.ips[i].AsSlice()}))
			}
			return err
		},
	}
	for ns, change := range changes {
		err := network.InNetNS(ns, func() error {
			h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
			if err != nil {
				return err
			}
			defer h.Close()
			return change(h)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, at := range []string{outside, outside6} {
		serveAt(t, other.netns, at+":80", "outside")
	}
	for _, at := range []string{"127.0.0.1", "[::1]"} {
		serveAt(t, m.netns, at+":8099", "secret")
	}

	start := func(egress string) string {
		m.flags = []string{"--pod-egress=" + egress, "--cluster-cidr", pods4 + "," + pods6, "--service-cidr", services4 + "," + services6, "--node-network-cidr", nodes4 + "," + nodes6}
		if err := errors.Join(m.start(), m.pushImages()); err != nil {
			t.Fatal(err)
		}
		ns := m.namespace(t, "egress-"+egress)
		m.apply(t, ns, policyPod("pod", "worker-2", "")+`---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: none}
spec: {podSelector: {matchLabels: {app: held}}, policyTypes: [Egress]}
`+policyPod("held", "worker-1", ""))
		m.awaitPod(t, ns, "pod", "it is ready", ready)
		return ns
	}
	fetch := func(ns, pod, url string) result {
		return m.run("kubectl", "exec", "-n", ns, pod, "--", "/server", "fetch", url)
	}
	ns := start("true")
	contains(t, m.inPod(t, ns, "pod", "fetch", "http://"+outside), "outside asked by "+m.ip.String())
	contains(t, m.inPod(t, ns, "pod", "fetch", "http://"+outside6), "outside asked by "+m.ips[1].String())
	for what, c := range map[string][2]string{
		"the machine's loopback by IPv6":         {"pod", "http://[::1]:8099"},
		"its IPv4 in the form of IPv6":           {"pod", "http://[::ffff:127.0.0.1]:8099"},
		"a port where nobody is by IPv6":         {"pod", "http://" + outside6 + ":81"},
		"a pod's IPv6 address that no pod has":   {"pod", "http://[fd00:10:52:fa::1]"},
		"the machine's loopback":                 {"pod", "http://127.0.0.1:8099"},
		"a port where nobody is":                 {"pod", "http://" + outside + ":81"},
		"an address of pods that no pod has":     {"pod", "http://10.52.250.1"},
		"an address that only the link would do": {"pod", "http://169.254.169.254"},
	} {
		if r := fetch(ns, c[0], c[1]); r.code == 0 || strings.Contains(r.stdout, "asked by") {
			t.Errorf("%s was reached: %s", what, r.stdout)
		}
	}
	held := m.awaitPod(t, ns, "held", "it is ready", ready)
	for _, at := range []string{outside, outside6} {
		if err := (wire{t, m.cluster}).connects(held, at+":80", unanswered); err == nil {
			t.Error("a pod that a policy holds back gets out to", at)
		}
	}
	if err := m.interrupt(); err != nil {
		t.Fatal(err)
	}
	ns = start("false")
	for _, at := range []string{outside, outside6} {
		if r := fetch(ns, "pod", "http://"+at); r.code == 0 {
			t.Errorf("without --pod-egress: %s", r.stdout)
		}
	}
}
