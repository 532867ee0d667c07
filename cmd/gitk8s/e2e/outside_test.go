package e2e

import (
	"errors"
	"net"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	outside "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/miekg/dns"

	corev1 "k8s.io/api/core/v1"
)

// TestRegistryElsewhere: a worker, in whose network nothing of the machine is, pulls
// from a registry of the machine.
func TestRegistryElsewhere(t *testing.T) {
	t.Parallel()
	pullsFromElsewhere(t, suite.shared, suite.shared.namespace(t, "elsewhere"))
}

// pullsFromElsewhere runs a pod with an image of a registry on loopback.
func pullsFromElsewhere(t *testing.T, c *cluster, ns string) {
	t.Helper()
	s := httptest.NewServer(outside.New())
	t.Cleanup(s.Close)
	address := s.Listener.Addr().String()
	img, err := image("VERSION=elsewhere")
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(address + "/some/web:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	// One that nobody serves is named with the cause.
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	c.apply(t, ns, `apiVersion: v1
kind: Pod
metadata: {name: pulled}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "`+address+`/some/web:v1"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unreachable}
spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "`+closed.Addr().String()+`/some/web:v1"}]}
`)
	c.awaitPod(t, ns, "pulled", "it is Ready", ready)
	c.awaitPod(t, ns, "unreachable", "it says why", func(p *corev1.Pod) bool {
		for _, s := range p.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil && strings.Contains(w.Message, "connection refused") {
				return true
			}
		}
		return false
	})
}

// namesElsewhere serves one name on loopback, and returns the address.
func namesElsewhere(t *testing.T, name, ip string) string {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		switch {
		case q.Question[0].Name != name:
			r.Rcode = dns.RcodeNameError
		case q.Question[0].Qtype == dns.TypeA:
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(ip)}}
		}
		_ = w.WriteMsg(r)
	})}
	go func() { _ = s.ActivateAndServe() }()
	t.Cleanup(func() { _ = s.Shutdown() })
	return conn.LocalAddr().String()
}

// looksUp waits until a pod knows a name.
func looksUp(t *testing.T, k tool, pod, name, ip string) {
	t.Helper()
	eventually(t, pod+" looks up "+name, func() error {
		if r := k.try("", "exec", pod, "--", "/server", "lookup", "host", name); strings.TrimSpace(r.stdout) != ip {
			return errors.New(r.String())
		}
		return nil
	})
}
