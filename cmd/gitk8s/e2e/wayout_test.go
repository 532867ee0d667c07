package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
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

// TestPodEgress: the pods of `up` reach what its machine reaches, which is another machine
// here, and nothing of the machine's loopback; and nothing at all if so asked.
func TestPodEgress(t *testing.T) {
	t.Parallel()
	all := machines(t, 2)
	m, other := all[0], all[1]
	const outside = "192.0.2.7"
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(outside).To4(), Mask: net.CIDRMask(32, 32)}}
	changes := map[string]func(*netlink.Handle) error{
		other.netns: func(h *netlink.Handle) error {
			lo, err := h.LinkByName("lo")
			return errors.Join(err, h.AddrAdd(lo, addr))
		},
		m.netns: func(h *netlink.Handle) error {
			return h.RouteAdd(&netlink.Route{Dst: addr.IPNet, Gw: other.ip.AsSlice()})
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
	serveAt(t, other.netns, outside+":80", "outside")
	serveAt(t, m.netns, "127.0.0.1:8099", "secret")

	start := func(egress string) string {
		m.flags = []string{"--pod-egress=" + egress}
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
	for what, c := range map[string][2]string{
		"the machine's loopback":                 {"pod", "http://127.0.0.1:8099"},
		"a port where nobody is":                 {"pod", "http://" + outside + ":81"},
		"an address of pods that no pod has":     {"pod", "http://10.42.250.1"},
		"an address that only the link would do": {"pod", "http://169.254.169.254"},
	} {
		if r := fetch(ns, c[0], c[1]); r.code == 0 || strings.Contains(r.stdout, "asked by") {
			t.Errorf("%s was reached: %s", what, r.stdout)
		}
	}
	held := m.awaitPod(t, ns, "held", "it is ready", ready)
	if err := (wire{t, m.cluster}).connects(held, outside+":80", unanswered); err == nil {
		t.Error("a pod that a policy holds back gets out")
	}
	if err := m.interrupt(); err != nil {
		t.Fatal(err)
	}
	ns = start("false")
	if r := fetch(ns, "pod", "http://"+outside); r.code == 0 {
		t.Errorf("without --pod-egress: %s", r.stdout)
	}
}
