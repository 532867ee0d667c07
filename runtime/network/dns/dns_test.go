package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func service(ns, name, ip string, edit ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip,
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Port: 81, Protocol: corev1.ProtocolTCP}},
		},
	}
	for _, f := range edit {
		f(s)
	}
	return s
}

// slice of endpoints, each "address", "address=hostname", or with a "!" in front if
// it is not ready.
func slice(ns, service, name string, endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		Ports:      []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To[int32](8080)}, {Name: ptr.To(""), Port: ptr.To[int32](8081)}},
	}
	for _, text := range endpoints {
		text, notReady := strings.CutPrefix(text, "!")
		address, host, _ := strings.Cut(text, "=")
		e := discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(!notReady)}}
		if host != "" {
			e.Hostname = &host
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	return s
}

func zone() *Zone {
	z := NewZone("cluster.local", netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/56"), netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/112"))
	z.SetService(service("shop", "web", "10.43.0.5"))
	z.SetSlice(slice("shop", "web", "web-1", "10.42.0.9"))
	z.SetService(service("shop", "six", "10.43.0.6", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"10.43.0.6", "fd00::6"} }))
	z.SetService(service("shop", "db", corev1.ClusterIPNone))
	z.SetSlice(slice("shop", "db", "db-a", "10.42.0.1=db-0", "!10.42.0.2=db-1"))
	z.SetSlice(slice("shop", "db", "db-b", "10.42.1.3", "10.42.0.1=db-0"))
	z.SetService(service("shop", "none", corev1.ClusterIPNone))
	z.SetService(service("shop", "both", corev1.ClusterIPNone))
	z.SetSlice(slice("shop", "both", "both-4", "10.42.0.1=db-0", "10.42.0.7"))
	z.SetSlice(slice("shop", "both", "both-6", "fd00:42::1=db-0", "fd00:42::7"))
	z.SetService(service("shop", "only6", "fd00:43::8"))
	z.SetService(service("shop", "pods6", corev1.ClusterIPNone))
	z.SetSlice(slice("shop", "pods6", "pods6-6", "fd00:42::9"))
	z.SetService(service("shop", "away", "", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "db.example.com"
	}))
	z.SetService(service("shop", "alias", "", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "web.shop.svc.cluster.local"
	}))
	z.SetService(service("shop", "loop", "", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "loop.shop.svc.cluster.local"
	}))
	return z
}

// said is an answer in short: its code if it is not NOERROR, and its records.
func said(m *dns.Msg) string {
	var out []string
	for _, rr := range m.Answer {
		out = append(out, strings.TrimSpace(strings.TrimPrefix(rr.String(), rr.Header().String())))
	}
	slices.Sort(out)
	if m.Rcode != dns.RcodeSuccess {
		out = append(out, dns.RcodeToString[m.Rcode])
	}
	return strings.Join(out, ", ")
}

func ask(s *Server, name string, kind uint16) *dns.Msg {
	return s.Respond(context.Background(), new(dns.Msg).SetQuestion(name, kind))
}

func TestAnswer(t *testing.T) {
	s := NewServer(zone(), nil)
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"web.shop.svc.cluster.local.", dns.TypeA, "10.43.0.5"},
		{"WEB.Shop.svc.CLUSTER.local.", dns.TypeA, "10.43.0.5"},
		{"web.shop.svc.cluster.local.", dns.TypeAAAA, ""},
		{"web.shop.svc.cluster.local.", dns.TypeMX, ""},
		{"six.shop.svc.cluster.local.", dns.TypeAAAA, "fd00::6"},
		{"six.shop.svc.cluster.local.", dns.TypeA, "10.43.0.6"},
		{"_http._tcp.six.shop.svc.cluster.local.", dns.TypeSRV, "0 100 80 six.shop.svc.cluster.local."},
		{"only6.shop.svc.cluster.local.", dns.TypeAAAA, "fd00:43::8"},
		{"only6.shop.svc.cluster.local.", dns.TypeA, ""},
		{"both.shop.svc.cluster.local.", dns.TypeA, "10.42.0.1, 10.42.0.7"},
		{"both.shop.svc.cluster.local.", dns.TypeAAAA, "fd00:42::1, fd00:42::7"},
		{"db-0.both.shop.svc.cluster.local.", dns.TypeA, "10.42.0.1"},
		{"db-0.both.shop.svc.cluster.local.", dns.TypeAAAA, "fd00:42::1"},
		{"10-42-0-7.both.shop.svc.cluster.local.", dns.TypeA, "10.42.0.7"},
		{"10-42-0-7.both.shop.svc.cluster.local.", dns.TypeAAAA, ""},
		{"fd00-42--7.both.shop.svc.cluster.local.", dns.TypeAAAA, "fd00:42::7"},
		{"fd00-42--7.both.shop.svc.cluster.local.", dns.TypeA, ""},
		{"_http._tcp.both.shop.svc.cluster.local.", dns.TypeSRV, "0 100 8080 10-42-0-7.both.shop.svc.cluster.local., 0 100 8080 db-0.both.shop.svc.cluster.local., 0 100 8080 fd00-42--7.both.shop.svc.cluster.local."},
		{"pods6.shop.svc.cluster.local.", dns.TypeA, ""},
		{"pods6.shop.svc.cluster.local.", dns.TypeAAAA, "fd00:42::9"},
		{"none.shop.svc.cluster.local.", dns.TypeAAAA, "NXDOMAIN"},
		{"db.shop.svc.cluster.local.", dns.TypeAAAA, ""},
		{"7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "fd00-42--7.both.shop.svc.cluster.local."},
		{"1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "db-0.both.shop.svc.cluster.local."},
		{"8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "only6.shop.svc.cluster.local."},
		{"5.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.4.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"fd00-42--7.shop.pod.cluster.local.", dns.TypeAAAA, "fd00:42::7"},
		{"fd00-42--7.shop.pod.cluster.local.", dns.TypeA, ""},
		{"fd00-42--g.shop.pod.cluster.local.", dns.TypeAAAA, "NXDOMAIN"},
		{"10-1-2-3.shop.pod.cluster.local.", dns.TypeAAAA, ""},
		{"db.shop.svc.cluster.local.", dns.TypeA, "10.42.0.1, 10.42.1.3"},
		{"db-0.db.shop.svc.cluster.local.", dns.TypeA, "10.42.0.1"},
		{"db-1.db.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"10-42-1-3.db.shop.svc.cluster.local.", dns.TypeA, "10.42.1.3"},
		{"10-42-0-9.web.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"none.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"nothing.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"a.b.c.web.shop.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"_http._tcp.web.shop.svc.cluster.local.", dns.TypeSRV, "0 100 80 web.shop.svc.cluster.local."},
		{"_HTTP._TCP.web.shop.svc.cluster.local.", dns.TypeSRV, "0 100 80 web.shop.svc.cluster.local."},
		{"_http._udp.web.shop.svc.cluster.local.", dns.TypeSRV, "NXDOMAIN"},
		{"_._tcp.web.shop.svc.cluster.local.", dns.TypeSRV, "NXDOMAIN"},
		{"_TCP.web.shop.svc.cluster.local.", dns.TypeSRV, ""},
		{"_tcp.db.shop.svc.cluster.local.", dns.TypeA, ""},
		{"_udp.web.shop.svc.cluster.local.", dns.TypeSRV, "NXDOMAIN"},
		{"_http._tcp.web.shop.svc.cluster.local.", dns.TypeA, ""},
		{"_http._tcp.db.shop.svc.cluster.local.", dns.TypeSRV, "0 100 8080 10-42-1-3.db.shop.svc.cluster.local., 0 100 8080 db-0.db.shop.svc.cluster.local."},
		{"5.0.43.10.in-addr.arpa.", dns.TypePTR, "web.shop.svc.cluster.local."},
		{"1.0.42.10.in-addr.arpa.", dns.TypePTR, "db-0.both.shop.svc.cluster.local., db-0.db.shop.svc.cluster.local."},
		{"9.0.42.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"77.0.42.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN"},
		{"6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "six.shop.svc.cluster.local."},
		{"alias.shop.svc.cluster.local.", dns.TypeA, "10.43.0.5, web.shop.svc.cluster.local."},
		{"alias.shop.svc.cluster.local.", dns.TypeCNAME, "web.shop.svc.cluster.local."},
		{"dns-version.cluster.local.", dns.TypeTXT, `"1.1.0"`},
		{"10-1-2-3.shop.pod.cluster.local.", dns.TypeA, "10.1.2.3"},
		{"10-1-2-300.shop.pod.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"shop.svc.cluster.local.", dns.TypeA, ""},
		{"nowhere.svc.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"svc.cluster.local.", dns.TypeA, ""},
		{"cluster.local.", dns.TypeA, ""},
		{"other.cluster.local.", dns.TypeA, "NXDOMAIN"},
		{"example.com.", dns.TypeA, "NXDOMAIN"},
		{"notcluster.local.", dns.TypeA, "NXDOMAIN"},
	} {
		m := ask(s, c.name, c.kind)
		if got := said(m); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.name, dns.TypeToString[c.kind], got, c.want)
		}
		if len(m.Answer) == 0 && m.Authoritative && len(m.Ns) != 1 {
			t.Errorf("%s: an answer that says no without SOA", c.name)
		}
	}
	if m := ask(s, "_http._tcp.db.shop.svc.cluster.local.", dns.TypeSRV); len(m.Extra) != 2 {
		t.Errorf("the targets' addresses are %v", m.Extra)
	}
	if m := ask(s, "_http._tcp.both.shop.svc.cluster.local.", dns.TypeSRV); len(m.Extra) != 4 {
		t.Errorf("the targets' addresses are %v", m.Extra)
	}
	if m := ask(s, "loop.shop.svc.cluster.local.", dns.TypeA); m.Rcode != dns.RcodeRefused || len(m.Answer) > maxChain {
		t.Errorf("a name that is itself: %s", m)
	}
}

// TestZoneForgets: what was set and deleted, in whatever order, is not there.
func TestZoneForgets(t *testing.T) {
	z := NewZone("cluster.local")
	svc, a, b := service("shop", "db", corev1.ClusterIPNone), slice("shop", "db", "a", "10.42.0.1=db-0"), slice("shop", "db", "b", "10.42.0.1=db-0", "10.42.0.2")
	z.SetSlice(a)
	z.SetService(svc)
	z.SetSlice(b)
	z.SetSlice(slice("shop", "db", "b", "10.42.0.3"))
	s := NewServer(z, nil)
	if got := said(ask(s, "db.shop.svc.cluster.local.", dns.TypeA)); got != "10.42.0.1, 10.42.0.3" {
		t.Errorf("%q", got)
	}
	if got := said(ask(s, "2.0.42.10.in-addr.arpa.", dns.TypePTR)); got != "NXDOMAIN" {
		t.Errorf("an address that has left: %q", got)
	}
	z.SetSlice(slice("shop", "other", "b", "10.42.0.3"))
	if got := said(ask(s, "db.shop.svc.cluster.local.", dns.TypeA)); got != "10.42.0.1" {
		t.Errorf("a slice that was given to another service: %q", got)
	}
	z.DeleteService(svc)
	z.DeleteSlice(b)
	z.DeleteSlice(a)
	z.DeleteSlice(a)
	if len(z.services)+len(z.slices)+len(z.given)+len(z.byAddress)+len(z.namespaces) != 0 {
		t.Errorf("left: %+v", z)
	}
}

// elsewhere is a name server on loopback.
func elsewhere(t *testing.T, answer func(*dns.Msg) *dns.Msg) (string, *atomic.Int32) {
	t.Helper()
	udp, tcp, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	// The same port for both.
	tcp.Close()
	if tcp, err = net.Listen("tcp", udp.LocalAddr().String()); err != nil {
		t.Fatal(err)
	}
	asked := &atomic.Int32{}
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		asked.Add(1)
		m := answer(r)
		if _, isTCP := w.RemoteAddr().(*net.TCPAddr); !isTCP {
			m.Truncate(room(r))
		}
		_ = w.WriteMsg(m)
	})
	for _, srv := range []*dns.Server{{PacketConn: udp, Handler: h}, {Listener: tcp, Handler: h}} {
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.ActivateAndServe() }()
		t.Cleanup(func() { udp.Close(); tcp.Close(); <-done })
	}
	return udp.LocalAddr().String(), asked
}

func TestUpstream(t *testing.T) {
	addr, asked := elsewhere(t, func(r *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(r)
		switch q := r.Question[0]; q.Name {
		case "db.example.com.":
			rr, _ := dns.NewRR("db.example.com. 60 IN A 192.0.2.1")
			m.Answer = append(m.Answer, rr)
		case "many.example.com.":
			for i := range 200 {
				rr, _ := dns.NewRR(fmt.Sprintf("many.example.com. 60 IN A 192.0.2.%d", i))
				m.Answer = append(m.Answer, rr)
			}
		case "broken.example.com.":
			m.Rcode = dns.RcodeServerFailure
		default:
			m.Rcode = dns.RcodeNameError
			rr, _ := dns.NewRR("example.com. 60 IN SOA ns. host. 1 1 1 1 5")
			m.Ns = append(m.Ns, rr)
		}
		return m
	})
	u := NewUpstream([]string{"127.0.0.1:1", addr}, nil)
	now := time.Now()
	u.now = func() time.Time { return now }
	s := NewServer(zone(), u)
	for _, c := range []struct{ name, want string }{
		{"db.example.com.", "192.0.2.1"},
		{"away.shop.svc.cluster.local.", "192.0.2.1, db.example.com."},
		{"no.example.com.", "NXDOMAIN"},
		{"broken.example.com.", "SERVFAIL"},
		{"web.shop.svc.cluster.local.", "10.43.0.5"},
	} {
		if got := said(ask(s, c.name, dns.TypeA)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
	if m := ask(s, "many.example.com.", dns.TypeA); len(m.Answer) != 200 {
		t.Errorf("%d of 200 addresses: a truncated answer is asked for again by TCP", len(m.Answer))
	}
	before := asked.Load()
	now = now.Add(20 * time.Second)
	m := ask(s, "DB.example.com.", dns.TypeA)
	if asked.Load() != before || m.Answer[0].Header().Ttl != 40 {
		t.Errorf("asked %d times more; %s", asked.Load()-before, m.Answer)
	}
	now = now.Add(41 * time.Second)
	if ask(s, "db.example.com.", dns.TypeA); asked.Load() != before+1 {
		t.Error("an answer is remembered longer than it is true")
	}
	if ask(s, "no.example.com.", dns.TypeA); asked.Load() != before+2 {
		t.Error("a no is remembered longer than it is true")
	}
}

// packed is the size of a message as it is sent.
func packed(m *dns.Msg) int {
	m.Compress = true
	return m.Len()
}

// TestServe asks over the network, with datagrams and connections.
func TestServe(t *testing.T) {
	z := zone()
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("10.42.2.%d", i))
	}
	z.SetService(service("shop", "many", corev1.ClusterIPNone))
	z.SetSlice(slice("shop", "many", "many", many...))
	udp, tcp, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(z, nil).Serve(ctx, udp, tcp) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	q := new(dns.Msg).SetQuestion("many.shop.svc.cluster.local.", dns.TypeA)
	m, _, err := (&dns.Client{}).Exchange(q, udp.LocalAddr().String())
	if err != nil || !m.Truncated || packed(m) > plainUDP {
		t.Errorf("in a datagram: %v, %v", m, err)
	}
	q.SetEdns0(4096, false)
	if m, _, err = (&dns.Client{UDPSize: 4096}).Exchange(q, udp.LocalAddr().String()); err != nil || !m.Truncated || packed(m) > maxUDP {
		t.Errorf("in a large datagram: %v, %v", m, err)
	}
	if m, _, err = (&dns.Client{Net: "tcp"}).Exchange(q, tcp.Addr().String()); err != nil || len(m.Answer) != 100 {
		t.Errorf("in a connection: %v, %v", m, err)
	}
	// Whatever arrives, the server answers the next one.
	conn, err := net.Dial("udp", udp.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, junk := range []string{"", "x", strings.Repeat("\xff", 600), strings.Repeat("\x00", 12)} {
		if _, err := conn.Write([]byte(junk)); err != nil {
			t.Fatal(err)
		}
	}
	if m, _, err = (&dns.Client{}).Exchange(new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA), udp.LocalAddr().String()); err != nil || said(m) != "10.43.0.5" {
		t.Errorf("%v, %v", m, err)
	}
}

// TestEDNS: a version that we don't know is refused, and that somebody asks for
// signatures is repeated (RFC 6891, RFC 3225).
func TestEDNS(t *testing.T) {
	s := NewServer(zone(), nil)
	for _, tt := range []struct {
		version uint8
		do      bool
		want    int
	}{{0, false, dns.RcodeSuccess}, {0, true, dns.RcodeSuccess}, {1, false, dns.RcodeBadVers}, {255, true, dns.RcodeBadVers}} {
		q := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA).SetEdns0(4096, tt.do)
		q.IsEdns0().SetVersion(tt.version)
		b, err := s.Respond(t.Context(), q).Pack()
		if err != nil {
			t.Fatal(err)
		}
		m := new(dns.Msg)
		if err := m.Unpack(b); err != nil {
			t.Fatal(err)
		}
		opt := m.IsEdns0()
		if m.Rcode != tt.want || opt == nil || opt.Do() != tt.do || opt.Version() != 0 || opt.UDPSize() != maxUDP || (len(m.Answer) == 0) != (tt.want != dns.RcodeSuccess) {
			t.Errorf("%+v: %v", tt, m)
		}
	}
}

// FuzzRespond: no request stops the server, and every answer can be written.
func FuzzRespond(f *testing.F) {
	s := NewServer(zone(), nil)
	for _, name := range []string{"web.shop.svc.cluster.local.", "_http._tcp.db.shop.svc.cluster.local.", "1.0.42.10.in-addr.arpa.", "."} {
		b, err := new(dns.Msg).SetQuestion(name, dns.TypeANY).Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil || m.Response {
			return
		}
		r := s.Respond(t.Context(), m)
		r.Truncate(room(m))
		if _, err := r.Pack(); err != nil {
			t.Errorf("%s\n%v", m, err)
		}
	})
}

func BenchmarkRespond(b *testing.B) {
	s := NewServer(zone(), nil)
	q := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
	for b.Loop() {
		s.Respond(b.Context(), q)
	}
}
