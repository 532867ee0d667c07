package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
	"k8s.io/utils/lru"
)

const (
	// upstreamTimeout bounds one question to one server.
	upstreamTimeout = 2 * time.Second
	// maxCached answers are kept, each for no longer than maxTTL, and one that says no
	// for no longer than maxNegativeTTL.
	maxCached      = 4096
	maxTTL         = time.Hour
	maxNegativeTTL = 30 * time.Second
)

// errBusy: too many questions are on their way.
var errBusy = errors.New("too many questions at once")

// Upstream asks other servers, and remembers their answers. Safe for concurrent use.
type Upstream struct {
	servers []string
	dial    func(ctx context.Context, network, addr string) (net.Conn, error)
	slots   chan struct{}
	flight  singleflight.Group
	cache   *lru.Cache
	now     func() time.Time
}

// cached is an answer and when it was given.
type cached struct {
	msg   *dns.Msg
	at    time.Time
	until time.Time
}

// NewUpstream returns one that asks servers, host:port, in their order; dial, if not
// nil, opens the connections.
func NewUpstream(servers []string, dial func(ctx context.Context, network, addr string) (net.Conn, error)) *Upstream {
	if dial == nil {
		dial = (&net.Dialer{}).DialContext
	}
	return &Upstream{servers: servers, dial: dial, slots: make(chan struct{}, maxAtOnce), cache: lru.New(maxCached), now: time.Now}
}

// Ask answers a question from what is remembered, or asks. Questions that are alike
// are asked once.
func (u *Upstream) Ask(ctx context.Context, q dns.Question) (*dns.Msg, error) {
	key := fmt.Sprintf("%s %d", strings.ToLower(q.Name), q.Qtype)
	if v, ok := u.cache.Get(key); ok {
		if c := v.(*cached); u.now().Before(c.until) {
			return c.aged(u.now()), nil
		}
	}
	v, err, _ := u.flight.Do(key, func() (any, error) {
		select {
		case u.slots <- struct{}{}:
			defer func() { <-u.slots }()
		default:
			return nil, errBusy
		}
		msg, err := u.exchange(ctx, q)
		if err != nil {
			return nil, err
		}
		if d := lifetime(msg); d > 0 {
			u.cache.Add(key, &cached{msg, u.now(), u.now().Add(d)})
		}
		return msg, nil
	})
	if err != nil {
		return nil, err
	}
	return v.(*dns.Msg).Copy(), nil
}

// exchange asks one server after the other until one knows.
func (u *Upstream) exchange(ctx context.Context, q dns.Question) (*dns.Msg, error) {
	req := new(dns.Msg)
	req.Id, req.RecursionDesired, req.Question = dns.Id(), true, []dns.Question{q}
	req.SetEdns0(maxUDP, false)
	err := errors.New("no name server is known")
	for _, server := range u.servers {
		for _, network := range []string{"udp", "tcp"} {
			var msg *dns.Msg
			if msg, err = u.exchangeWith(ctx, network, server, req); err != nil {
				break
			}
			if msg.Truncated && network == "udp" {
				continue
			}
			if msg.Rcode == dns.RcodeSuccess || msg.Rcode == dns.RcodeNameError {
				return msg, nil
			}
			err = fmt.Errorf("%s: %s", server, dns.RcodeToString[msg.Rcode])
			break
		}
	}
	return nil, err
}

func (u *Upstream) exchangeWith(ctx context.Context, network, server string, req *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, upstreamTimeout)
	defer cancel()
	conn, err := u.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	c := &dns.Conn{Conn: conn, UDPSize: maxUDP}
	if err := c.WriteMsg(req); err != nil {
		return nil, err
	}
	for {
		msg, err := c.ReadMsg()
		if err != nil {
			return nil, err
		}
		// What answers another question is somebody's guess.
		if msg.Response && msg.Id == req.Id && len(msg.Question) == 1 && sameQuestion(msg.Question[0], req.Question[0]) {
			return msg, nil
		}
		if network == "tcp" {
			return nil, fmt.Errorf("%s answered another question", server)
		}
	}
}

func sameQuestion(a, b dns.Question) bool {
	return strings.EqualFold(a.Name, b.Name) && a.Qtype == b.Qtype && a.Qclass == b.Qclass
}

// lifetime is how long an answer may be kept: the least of its records' times, and
// for one that says no what its SOA says (RFC 2308).
func lifetime(m *dns.Msg) time.Duration {
	if len(m.Answer) > 0 && m.Rcode == dns.RcodeSuccess {
		least := maxTTL
		for _, rr := range m.Answer {
			least = min(least, time.Duration(rr.Header().Ttl)*time.Second)
		}
		return least
	}
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			return min(time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second, maxNegativeTTL)
		}
	}
	return 0
}

// aged is the answer as it is at now: its times have become shorter.
func (c *cached) aged(now time.Time) *dns.Msg {
	m := c.msg.Copy()
	age := uint32(now.Sub(c.at) / time.Second)
	for _, list := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range list {
			if h := rr.Header(); h.Ttl > age {
				h.Ttl -= age
			} else {
				h.Ttl = 0
			}
		}
	}
	return m
}
