package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

const (
	// ttl in seconds of what a watch may change at any time: the least that caches
	// take note of, so that what has gone is gone from answers within a second.
	ttl = 1
	// schemaVersion is the one of the specification.
	schemaVersion = "1.1.0"
	// srvPriority and srvWeight are alike for all.
	srvPriority, srvWeight = 0, 100
)

// Reply is what a zone answers.
type Reply struct {
	// Rcode is dns.RcodeSuccess, also without an answer, if the name exists.
	Rcode         int
	Answer, Extra []dns.RR
	// Elsewhere is a name of another zone at which the answer goes on, if so.
	Elsewhere string
}

var (
	noSuchName = Reply{Rcode: dns.RcodeNameError}
	noSuchType = Reply{}
)

// Answer answers a question; false if it is not about the cluster. Names are
// compared without regard to case.
func (z *Zone) Answer(q dns.Question) (Reply, bool) {
	qname := strings.ToLower(q.Name)
	z.mu.RLock()
	defer z.mu.RUnlock()
	if addr, ok := reverse(qname); ok {
		return z.pointer(q, addr)
	}
	rest, ours := strings.CutSuffix(qname, z.domain)
	if !ours || (rest != "" && !strings.HasSuffix(rest, ".")) {
		return Reply{}, false
	}
	r := z.forward(q, dns.SplitDomainName(rest))
	if len(r.Answer) == 0 {
		return r, true
	}
	// Clients take the first: whoever is first changes.
	rand.Shuffle(len(r.Answer), func(i, j int) { r.Answer[i], r.Answer[j] = r.Answer[j], r.Answer[i] })
	return r, true
}

// SOA goes with an answer that says no.
func (z *Zone) SOA() dns.RR {
	return &dns.SOA{
		Hdr: header(z.domain, dns.TypeSOA), Ns: "ns.dns." + z.domain, Mbox: "hostmaster." + z.domain,
		Serial: 1, Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: ttl,
	}
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// forward answers for a name whose labels before the domain are given.
func (z *Zone) forward(q dns.Question, labels []string) Reply {
	n := len(labels)
	switch {
	case n == 0:
		if q.Qtype == dns.TypeSOA {
			return Reply{Answer: []dns.RR{z.SOA()}}
		}
		return noSuchType
	case n == 1 && labels[0] == "dns-version":
		if q.Qtype == dns.TypeTXT {
			return Reply{Answer: []dns.RR{&dns.TXT{Hdr: header(q.Name, dns.TypeTXT), Txt: []string{schemaVersion}}}}
		}
		return noSuchType
	case labels[n-1] == "pod":
		return z.pod(q, labels[:n-1])
	case labels[n-1] != "svc":
		return noSuchName
	case n == 1:
		return noSuchType
	case n == 2:
		if z.namespaces[labels[0]] == 0 {
			return noSuchName
		}
		return noSuchType
	}
	of := name{labels[n-2], labels[n-3]}
	s := z.services[of]
	if s == nil {
		return noSuchName
	}
	switch labels := labels[:n-3]; len(labels) {
	case 0:
		return z.service(q, of, s)
	case 1:
		return z.host(q, of, s, labels[0])
	case 2:
		return z.port(q, of, s, labels[0], labels[1])
	}
	return noSuchName
}

// service answers for a service's own name.
func (z *Zone) service(q dns.Question, of name, s *corev1.Service) Reply {
	switch {
	case s.Spec.Type == corev1.ServiceTypeExternalName:
		target := dns.Fqdn(s.Spec.ExternalName)
		r := Reply{Answer: []dns.RR{&dns.CNAME{Hdr: header(q.Name, dns.TypeCNAME), Target: target}}}
		if q.Qtype != dns.TypeCNAME {
			r.Elsewhere = target
		}
		return r
	case headless(s):
		all := z.endpoints(of)
		if len(all) == 0 {
			return noSuchName
		}
		var addrs []netip.Addr
		for _, e := range all {
			addrs = append(addrs, e.addr)
		}
		return Reply{Answer: addressRecords(q, addrs)}
	}
	return Reply{Answer: addressRecords(q, clusterIPs(s))}
}

// host answers for the name of an endpoint of a headless service, or of a protocol: below
// that there are names of ports, so there is such a name (RFC 8020).
func (z *Zone) host(q dns.Question, of name, s *corev1.Service, host string) Reply {
	if protocol, ok := strings.CutPrefix(host, "_"); ok {
		if s.Spec.Type != corev1.ServiceTypeExternalName && slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
			return p.Name != "" && strings.EqualFold(string(p.Protocol), protocol)
		}) {
			return noSuchType
		}
		return noSuchName
	}
	if !headless(s) {
		return noSuchName
	}
	var addrs []netip.Addr
	for _, e := range z.endpoints(of) {
		if strings.EqualFold(e.host, host) {
			addrs = append(addrs, e.addr)
		}
	}
	if len(addrs) == 0 {
		return noSuchName
	}
	return Reply{Answer: addressRecords(q, addrs)}
}

// port answers for a named port.
func (z *Zone) port(q dns.Question, of name, s *corev1.Service, port, protocol string) Reply {
	port, isPort := strings.CutPrefix(port, "_")
	protocol, isProtocol := strings.CutPrefix(protocol, "_")
	if !isPort || !isProtocol || s.Spec.Type == corev1.ServiceTypeExternalName {
		return noSuchName
	}
	i := slices.IndexFunc(s.Spec.Ports, func(p corev1.ServicePort) bool {
		return p.Name != "" && strings.EqualFold(p.Name, port) && strings.EqualFold(string(p.Protocol), protocol)
	})
	if i < 0 {
		return noSuchName
	}
	var r Reply
	add := func(target string, number int32, addrs ...netip.Addr) {
		r.Answer = append(r.Answer, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Priority: srvPriority, Weight: srvWeight, Port: uint16(number), Target: target})
		for _, a := range addrs {
			r.Extra = append(r.Extra, addressRecord(target, a))
		}
	}
	if !headless(s) {
		add(z.fqdn(of), s.Spec.Ports[i].Port, clusterIPs(s)...)
	} else {
		type target struct {
			name string
			port int32
		}
		seen := map[target]map[netip.Addr]bool{}
		z.eachReady(of, func(e endpoint, slice *discoveryv1.EndpointSlice) {
			for _, p := range slice.Ports {
				if p.Name == nil || p.Port == nil || *p.Name != s.Spec.Ports[i].Name {
					continue
				}
				// An endpoint with a name has it in each family, and is told once.
				at := target{strings.ToLower(e.host) + "." + z.fqdn(of), *p.Port}
				if seen[at] == nil {
					seen[at] = map[netip.Addr]bool{}
					add(at.name, at.port)
				}
				if !seen[at][e.addr] {
					seen[at][e.addr] = true
					r.Extra = append(r.Extra, addressRecord(at.name, e.addr))
				}
			}
		})
	}
	switch {
	case len(r.Answer) == 0:
		return noSuchName
	case q.Qtype != dns.TypeSRV && q.Qtype != dns.TypeANY:
		return noSuchType
	}
	return r
}

// pod answers for an address written as a name, a-b-c-d.namespace.pod, or with the
// colons of IPv6 as dashes: the pods are not looked at, as the specification says of
// these names.
func (z *Zone) pod(q dns.Question, labels []string) Reply {
	if len(labels) != 2 {
		return noSuchName
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
	if err != nil {
		a, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":"))
	}
	if err != nil || a.Is4In6() {
		return noSuchName
	}
	return Reply{Answer: addressRecords(q, []netip.Addr{a})}
}

// pointer answers whose an address is.
func (z *Zone) pointer(q dns.Question, a netip.Addr) (Reply, bool) {
	var names []string
	for of := range z.byAddress[a] {
		s := z.services[of]
		switch {
		case s == nil:
		case slices.Contains(clusterIPs(s), a):
			names = append(names, z.fqdn(of))
		case headless(s):
			for _, e := range z.endpoints(of) {
				if e.addr == a {
					names = append(names, strings.ToLower(e.host)+"."+z.fqdn(of))
				}
			}
		}
	}
	if len(names) == 0 {
		return noSuchName, slices.ContainsFunc(z.own, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	if q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY {
		return noSuchType, true
	}
	slices.Sort(names)
	var r Reply
	for _, n := range names {
		r.Answer = append(r.Answer, &dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: n})
	}
	return r, true
}

func (z *Zone) fqdn(of name) string { return of.name + "." + of.namespace + ".svc." + z.domain }

// addressRecords are those of the family that is asked for.
func addressRecords(q dns.Question, addrs []netip.Addr) (out []dns.RR) {
	for _, a := range addrs {
		if rr := addressRecord(q.Name, a); q.Qtype == rr.Header().Rrtype || q.Qtype == dns.TypeANY {
			out = append(out, rr)
		}
	}
	return out
}

func addressRecord(name string, a netip.Addr) dns.RR {
	if a.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: a.AsSlice()}
}

// reverse reads the name under which an address is looked up.
func reverse(qname string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(qname, ".in-addr.arpa."); ok {
		labels := strings.Split(rest, ".")
		slices.Reverse(labels)
		a, err := netip.ParseAddr(strings.Join(labels, "."))
		return a, err == nil && a.Is4()
	}
	rest, ok := strings.CutSuffix(qname, ".ip6.arpa.")
	if !ok {
		return netip.Addr{}, false
	}
	labels := strings.Split(rest, ".")
	slices.Reverse(labels)
	var b strings.Builder
	for i, l := range labels {
		if i > 0 && i%4 == 0 {
			b.WriteByte(':')
		}
		b.WriteString(l)
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil && len(labels) == 32
}
