package dns

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// TestBadQuestions: what is no question is refused or not answered, and others still are.
func TestBadQuestions(t *testing.T) {
	udp, tcp, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- NewServer(zone(), nil).Serve(ctx, udp, tcp) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	header := func(questions byte) string {
		return "\x12\x34\x01\x00\x00" + string(questions) + "\x00\x00\x00\x00\x00\x00"
	}
	tail := "\x00\x00\x01\x00\x01" // end of the name, A, IN
	label := "\x3f" + strings.Repeat("x", 63)
	for name, packet := range map[string]string{
		"a name of 300 characters":     header(1) + strings.Repeat(label, 4) + "\x2b" + strings.Repeat("y", 43) + tail,
		"a label of 64 characters":     header(1) + "\x40" + strings.Repeat("x", 64) + tail,
		"a name that points at itself": header(1) + "\xc0\x0c\x00\x01\x00\x01",
		"a name without an end":        header(1) + label,
		"no question":                  header(0),
		"too many questions":           header(255) + "\x01a" + tail,
		"a part of a header":           "\x12\x34",
		"an answer":                    "\x12\x34\x81\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a" + tail,
	} {
		c, err := net.Dial("udp", udp.LocalAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(packet)); err != nil {
			t.Fatal(name, err)
		}
		// A question after it on the same socket: whatever comes before its answer is the
		// answer to the bad one.
		good := new(dns.Msg).SetQuestion("web.shop.svc.cluster.local.", dns.TypeA)
		good.Id = 0x4321
		conn := &dns.Conn{Conn: c}
		if err := conn.WriteMsg(good); err != nil {
			t.Fatal(name, err)
		}
		if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		for answered := false; !answered; {
			m, err := conn.ReadMsg()
			switch {
			case m == nil:
				t.Fatalf("after %s: %v", name, err)
			case m.Id == good.Id:
				answered = true
				if len(m.Answer) != 1 {
					t.Errorf("after %s: %v", name, m)
				}
			case m.Rcode != dns.RcodeFormatError:
				t.Errorf("%s: %v", name, m)
			}
		}
	}
}
