package ingress

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// What is plain is read here, into memory that is used again, and the rest by net/http,
// which makes some twenty objects of each request and its answer. Both read the same from
// what is plain: FuzzPlainHead and FuzzPlainAnswer compare them. Only that net/http adds a
// Cache-Control to a Pragma, which is not for who passes it on.

// plainRequest reads the head of a plain request: its fields into f, so r has no Header, and
// the rest into r.
func (f *fieldList) plainRequest(b []byte, h *head, r *http.Request) error {
	line, lines, _ := strings.Cut(string(b), "\r\n")
	method, rest, _ := strings.Cut(line, " ")
	target := strings.TrimSuffix(rest, " HTTP/1.1")
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return err
	}
	f.read(lines)
	host := f.Get("Host")
	f.Del("Host")
	*r = http.Request{
		Method: method, URL: u, RequestURI: target, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Host: host, Body: http.NoBody, ContentLength: int64(h.length), Close: h.close,
	}
	return nil
}

// plainAnswer reads the head of an answer, its fields into f and the rest into resp, and
// says how long it is, if it is plain: all of it is there, and its body has its length
// before it.
func (f *fieldList) plainAnswer(b []byte, resp *http.Response) (size int, ok bool) {
	size = endOfHead(b)
	if size < 0 {
		return 0, false
	}
	line, lines, ok := cutLine(b[:size])
	if !ok || !plainStatus(line) {
		return 0, false
	}
	for lengths, length := 0, 0; ; {
		field, rest, ok := cutLine(lines)
		if !ok {
			return 0, false
		}
		lines = rest
		if len(field) == 0 {
			if lengths != 1 || len(rest) > 0 {
				return 0, false
			}
			resp.ContentLength = int64(length)
			break
		}
		name, value, ok := plainField(field)
		if !ok {
			return 0, false
		}
		switch {
		case equalFold(name, "content-length"):
			lengths++
			if length, ok = plainLength(value); !ok {
				return 0, false
			}
		case equalFold(name, "connection"):
			resp.Close = equalFold(value, "close")
			if !resp.Close && !equalFold(value, "keep-alive") {
				return 0, false
			}
		case equalFold(name, "transfer-encoding"), equalFold(name, "upgrade"), equalFold(name, "trailer"):
			return 0, false
		}
	}
	text := string(b[:size])
	status, after, _ := strings.Cut(text, "\r\n")
	resp.Status = strings.TrimPrefix(status, "HTTP/1.1 ")
	resp.StatusCode, _ = strconv.Atoi(resp.Status[:3])
	f.read(after)
	return size, true
}

// plainStatus is the first line of an answer that comes last and has a body.
func plainStatus(line []byte) bool {
	status, ok := bytes.CutPrefix(line, []byte("HTTP/1.1 "))
	return ok && len(status) >= 3 && '2' <= status[0] && status[0] <= '5' && isDigit(status[1]) && isDigit(status[2]) &&
		(len(status) == 3 || status[3] == ' ') && all(status, isFieldValue) &&
		!bytes.HasPrefix(status, []byte("204")) && !bytes.HasPrefix(status, []byte("304"))
}

// content is a body whose length is known.
type content struct {
	from *bufio.Reader
	left int64
}

// Read implements io.Reader. The end comes with the last of the body, so that who passes it
// on knows that there is no more to wait for.
func (c *content) Read(b []byte) (n int, err error) {
	if c.left > 0 {
		n, err = c.from.Read(b[:min(int64(len(b)), c.left)])
		c.left -= int64(n)
	}
	switch {
	case c.left == 0:
		err = io.EOF
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Close implements io.Closer.
func (c *content) Close() error { return nil }
