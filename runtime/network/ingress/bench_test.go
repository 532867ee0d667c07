package ingress

import (
	"bytes"
	"crypto/tls"
	"net"
	"testing"
)

// The client and the pod of these benchmarks read and write bytes that stay the same, so
// that what is allocated is the proxy's.
var (
	benchRequest = []byte("GET /some/path HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	benchAnswer  = []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nDate: Mon, 02 Jan 2006 15:04:05 GMT\r\n\r\nhello")
)

// rawPod answers everything that it reads.
func rawPod(b *testing.B) string {
	return listen(b, func(c net.Conn) {
		buf := make([]byte, 4096)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
			if _, err := c.Write(benchAnswer); err != nil {
				return
			}
		}
	})
}

// exchangeRaw asks once.
func exchangeRaw(b *testing.B, c net.Conn, buf []byte) {
	if _, err := c.Write(benchRequest); err != nil {
		b.Fatal(err)
	}
	n := 0
	for !bytes.HasSuffix(buf[:n], []byte("hello")) {
		m, err := c.Read(buf[n:])
		if err != nil {
			b.Fatal(err)
		}
		n += m
	}
}

func BenchmarkProxy(b *testing.B) {
	bed := newBed(b)
	bed.pods[bed.pod(nil)+":8080"] = rawPod(b)
	bed.serve(webRule)
	buf := make([]byte, 4096)
	trust := &tls.Config{InsecureSkipVerify: true, ServerName: "shop.example.com"} //nolint:gosec // no certificate is looked at
	dial := func(b *testing.B, encrypted bool) net.Conn {
		var c net.Conn
		var err error
		if encrypted {
			c, err = tls.Dial("tcp", bed.https, trust)
		} else {
			c, err = net.Dial("tcp", bed.http)
		}
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	for _, way := range []struct {
		name      string
		encrypted bool
	}{{"HTTP", false}, {"HTTPS", true}} {
		b.Run(way.name+"/one connection", func(b *testing.B) {
			c := dial(b, way.encrypted)
			defer c.Close()
			b.ReportAllocs()
			for b.Loop() {
				exchangeRaw(b, c, buf)
			}
		})
		b.Run(way.name+"/a connection each", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c := dial(b, way.encrypted)
				exchangeRaw(b, c, buf)
				_ = c.Close()
			}
		})
	}
}
