package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

const (
	// maxChain is how many names an answer may go through.
	maxChain = 8
	// readTimeout and idleTimeout bound connections of clients, maxTCPQueries the
	// questions of one.
	readTimeout   = 2 * time.Second
	idleTimeout   = 8 * time.Second
	maxTCPQueries = 128
	// maxAtOnce bounds the questions that are passed on at the same time.
	maxAtOnce = 512
	// plainUDP is the size of an answer to a client that has not said how much it
	// takes, maxUDP the most that is sent in a datagram, whatever a client says:
	// larger ones are lost on the way (DNS Flag Day 2020).
	plainUDP = 512
	maxUDP   = 1232
)

// Server answers questions on a node.
type Server struct {
	zone     *Zone
	upstream *Upstream
}

// NewServer returns a server of a zone; what is not of the zone goes upstream. Without
// one there are no other names: a client that were refused would take that for a
// fault of ours that may pass.
func NewServer(z *Zone, upstream *Upstream) *Server { return &Server{z, upstream} }

// Serve answers on the sockets until ctx ends, and closes them.
func (s *Server) Serve(ctx context.Context, udp net.PacketConn, tcp net.Listener) error {
	servers := []*dns.Server{
		{PacketConn: udp, Handler: s, ReadTimeout: readTimeout, UDPSize: dns.DefaultMsgSize},
		{Listener: tcp, Handler: s, ReadTimeout: readTimeout, IdleTimeout: func() time.Duration { return idleTimeout }, MaxTCPQueries: maxTCPQueries},
	}
	errs := make(chan error, len(servers))
	for _, srv := range servers {
		go func() { errs <- srv.ActivateAndServe() }()
	}
	var err error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err = <-errs:
		left--
	}
	// The sockets end the servers: they may not have begun yet, and would refuse to
	// be shut down.
	_ = udp.Close()
	_ = tcp.Close()
	for range left {
		<-errs
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("serve DNS on %s: %w", udp.LocalAddr(), err)
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, req *dns.Msg) {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	resp := s.Respond(context.Background(), req)
	if size := room(req); !tcp {
		resp.Truncate(size)
	}
	_ = w.WriteMsg(resp) // who has gone away does not read it
}

// room is how large an answer may be in a datagram.
func room(req *dns.Msg) int {
	if opt := req.IsEdns0(); opt != nil {
		return min(max(int(opt.UDPSize()), plainUDP), maxUDP)
	}
	return plainUDP
}

// Respond answers a request.
func (s *Server) Respond(ctx context.Context, req *dns.Msg) *dns.Msg {
	resp := new(dns.Msg)
	resp.SetReply(req)
	resp.RecursionAvailable = s.upstream != nil
	opt := req.IsEdns0()
	if opt != nil {
		resp.SetEdns0(maxUDP, opt.Do()) // who asks for signatures is to see that we have read it (RFC 3225)
	}
	switch {
	case opt != nil && opt.Version() != 0:
		resp.Rcode = dns.RcodeBadVers // RFC 6891, 6.1.3
		return resp
	case req.Opcode != dns.OpcodeQuery:
		resp.Rcode = dns.RcodeNotImplemented
		return resp
	case len(req.Question) != 1:
		resp.Rcode = dns.RcodeFormatError
		return resp
	}
	q := req.Question[0]
	for range maxChain {
		if q.Qclass != dns.ClassINET {
			break
		}
		reply, ours := s.zone.Answer(q)
		if !ours {
			s.ask(ctx, q, resp)
			return resp
		}
		resp.Authoritative = true
		resp.Answer, resp.Extra = append(resp.Answer, reply.Answer...), append(resp.Extra, reply.Extra...)
		if reply.Elsewhere == "" {
			resp.Rcode = reply.Rcode
			if len(reply.Answer) == 0 {
				resp.Ns = []dns.RR{s.zone.SOA()}
			}
			return resp
		}
		q.Name = reply.Elsewhere
	}
	resp.Rcode = dns.RcodeRefused
	return resp
}

// ask passes a question on and adds what comes back.
func (s *Server) ask(ctx context.Context, q dns.Question, resp *dns.Msg) {
	if s.upstream == nil {
		resp.Rcode = dns.RcodeNameError
		return
	}
	got, err := s.upstream.Ask(ctx, q)
	if err != nil {
		resp.Rcode = dns.RcodeServerFailure
		if errors.Is(err, errBusy) {
			resp.Rcode = dns.RcodeRefused
		}
		return
	}
	resp.Authoritative = false
	resp.Rcode = got.Rcode
	resp.Answer, resp.Ns = append(resp.Answer, got.Answer...), append(resp.Ns, got.Ns...)
}

// Listen opens the sockets of a server.
func Listen(addr netip.AddrPort) (net.PacketConn, net.Listener, error) {
	udp, err := net.ListenPacket("udp", addr.String())
	if err != nil {
		return nil, nil, fmt.Errorf("listen for DNS: %w", err)
	}
	tcp, err := net.Listen("tcp", addr.String())
	if err != nil {
		_ = udp.Close()
		return nil, nil, fmt.Errorf("listen for DNS: %w", err)
	}
	return udp, tcp, nil
}
