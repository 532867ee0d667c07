package ingress

import (
	"bytes"
	"strconv"
	"strings"
)

// head is what is known of a request before it is parsed.
type head struct {
	size   int  // of the head, with the empty line at its end
	length int  // of the body
	close  bool // the client wants no second answer on this connection
	plain  bool // see plainHead
}

// endOfHead finds where a request's head ends: after its first empty line. It is
// negative if there is none.
func endOfHead(b []byte) int {
	for at := 0; ; {
		i := bytes.IndexByte(b[at:], '\n')
		if i < 0 {
			return -1
		}
		at += i + 1
		switch rest := b[at:]; {
		case len(rest) > 0 && rest[0] == '\n':
			return at + 1
		case len(rest) > 1 && rest[0] == '\r' && rest[1] == '\n':
			return at + 2
		}
	}
}

// plainHead reads a request's head, and says whether it is plain: one that every server
// reads in the same way, which asks for an answer and nothing more, and whose body, if it
// has one, has its length before it. It lets through what it knows to be well, and nothing
// else: net/http decides about the rest, and refuses what has to be refused (RFC 9112, 11.2).
func plainHead(b []byte) head {
	h := head{size: len(b)}
	lines := b
	line, lines, ok := cutLine(lines)
	if !ok || !plainRequestLine(line) {
		return h
	}
	hosts, lengths := 0, 0
	for {
		line, lines, ok = cutLine(lines)
		if !ok {
			return h
		}
		if len(line) == 0 {
			break
		}
		name, value, ok := plainField(line)
		if !ok {
			return h
		}
		switch {
		case equalFold(name, "host"):
			hosts++
			if len(value) == 0 || !all(value, isHost) {
				return h
			}
		case equalFold(name, "content-length"):
			lengths++
			if h.length, ok = plainLength(value); !ok {
				return h
			}
		case equalFold(name, "connection"):
			switch {
			case equalFold(value, "close"):
				h.close = true
			case !equalFold(value, "keep-alive"):
				return h
			}
		case equalFold(name, "transfer-encoding"), equalFold(name, "upgrade"), equalFold(name, "expect"), equalFold(name, "te"), equalFold(name, "trailer"), equalFold(name, "http2-settings"):
			return h
		}
	}
	h.plain = len(lines) == 0 && hosts == 1 && lengths <= 1
	return h
}

// plainField is a line of a header.
func plainField(line []byte) (name, value []byte, ok bool) {
	name, value, ok = bytes.Cut(line, []byte(":"))
	ok = ok && len(name) > 0 && all(name, isToken) && all(value, isFieldValue)
	return name, bytes.Trim(value, " \t"), ok
}

// cutLine returns the first line, without its end, and what follows it.
func cutLine(b []byte) (line, rest []byte, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 1 || b[i-1] != '\r' {
		return nil, nil, false
	}
	return b[:i-1], b[i+1:], true
}

// plainRequestLine is that of a request for a path at this server.
func plainRequestLine(line []byte) bool {
	line, ok := bytes.CutSuffix(line, []byte(" HTTP/1.1"))
	method, target, found := bytes.Cut(line, []byte(" "))
	return ok && found && len(method) > 0 && all(method, isToken) && string(method) != "CONNECT" &&
		len(target) > 0 && target[0] == '/' && all(target, isVisible)
}

// plainLength reads a length of few digits: anything longer does not fit a buffer.
func plainLength(b []byte) (int, bool) {
	if len(b) == 0 || len(b) > 9 || !all(b, isDigit) {
		return 0, false
	}
	n, err := strconv.Atoi(string(b))
	return n, err == nil
}

// equalFold compares without regard to case.
func equalFold(b []byte, s string) bool {
	return len(b) == len(s) && strings.EqualFold(string(b), s)
}

func all(b []byte, is func(byte) bool) bool {
	for _, c := range b {
		if !is(c) {
			return false
		}
	}
	return true
}

func isVisible(c byte) bool { return '!' <= c && c <= '~' }

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func isLetterOrDigit(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || isDigit(c)
}

// isToken is RFC 9110, 5.6.2.
func isToken(c byte) bool {
	return isLetterOrDigit(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// isFieldValue is RFC 9110, 5.5, with what is written in other character sets.
func isFieldValue(c byte) bool { return c >= ' ' && c != 0x7f || c == '\t' }

func isHost(c byte) bool { return isLetterOrDigit(c) || strings.IndexByte("-._:[]", c) >= 0 }
