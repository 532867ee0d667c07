package ingress

import (
	"net"
	"net/http"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"

	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// action is what a route of a Gateway does besides choosing a service.
type action struct {
	// refused is why requests are answered with 500; empty if they are not.
	refused           string
	redirect          *gatewayv1.HTTPRequestRedirectFilter
	rewrite           *gatewayv1.HTTPURLRewriteFilter
	request, response headerChanges
}

// headerChanges are made one after the other.
type headerChanges []headerChange

// headerChange sets, adds to or removes a header.
type headerChange struct {
	name, value string // name is canonical
	add, remove bool
}

func (h *headerChanges) append(f *gatewayv1.HTTPHeaderFilter) {
	for _, c := range f.Set {
		h.add(headerChange{name: string(c.Name), value: c.Value})
	}
	for _, c := range f.Add {
		h.add(headerChange{name: string(c.Name), value: c.Value, add: true})
	}
	for _, name := range f.Remove {
		h.add(headerChange{name: name, remove: true})
	}
}

func (h *headerChanges) add(c headerChange) {
	if !all([]byte(c.name), isToken) {
		return // no message can have it
	}
	c.name = textproto.CanonicalMIMEHeaderKey(c.name)
	switch c.name {
	case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
		return // whom a message is for and where it ends is not a filter's to say
	}
	*h = append(*h, c)
}

func (h headerChanges) apply(to header) {
	for i := range h {
		switch c := &h[i]; {
		case c.remove:
			to.Del(c.name)
		case c.add:
			to.Add(c.name, c.value)
		default:
			to.Set(c.name, c.value)
		}
	}
}

// answer answers a request that goes to no pod, and says whether it did.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, x *exchange) bool {
	a := x.route.action
	switch {
	case a.redirect != nil:
		w.Header().Set("Location", p.redirected(r, a.redirect, x.match))
		a.response.apply(w.Header())
		w.WriteHeader(ptr.Deref(a.redirect.StatusCode, http.StatusFound))
	case a.refused != "":
		http.Error(w, a.refused, http.StatusInternalServerError)
	default:
		return false
	}
	return true
}

// redirected is the address that a request is sent to. Without a port it is that of
// the scheme, as it is reached here, if the filter names one, else the request's own.
func (p *Proxy) redirected(r *http.Request, f *gatewayv1.HTTPRequestRedirectFilter, m *match) string {
	u := url.URL{Scheme: "http", Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	_, port := splitHost(r.Host)
	if f.Scheme != nil && *f.Scheme != u.Scheme {
		u.Scheme = *f.Scheme
		port = strconv.Itoa(int(p.httpPort.Load()))
		if u.Scheme == "https" {
			port = strconv.Itoa(int(p.httpsPort.Load()))
		}
	}
	if f.Port != nil {
		port = strconv.Itoa(int(*f.Port))
	}
	if u.Scheme == "http" && port == "80" || u.Scheme == "https" && port == "443" {
		port = ""
	}
	u.Host = hostOf(r.Host)
	if f.Hostname != nil {
		u.Host = string(*f.Hostname)
	}
	if port != "" {
		u.Host = net.JoinHostPort(strings.Trim(u.Host, "[]"), port)
	} else if strings.Contains(u.Host, ":") && u.Host[0] != '[' {
		u.Host = "[" + u.Host + "]"
	}
	if f.Path != nil {
		changePath(&u, f.Path, m)
	}
	return u.String()
}

// change makes the request that the pod gets what the filters say.
func (a *action) change(host *string, u *url.URL, h header, m *match) {
	if a.rewrite != nil {
		if a.rewrite.Hostname != nil {
			*host = string(*a.rewrite.Hostname)
		}
		if a.rewrite.Path != nil {
			changePath(u, a.rewrite.Path, m)
		}
	}
	a.request.apply(h)
}

// changePath puts another path, or another prefix for the one that matched. What
// remains of a path stays encoded as it came, if that says the same.
func changePath(u *url.URL, f *gatewayv1.HTTPPathModifier, m *match) {
	if f.Type == gatewayv1.FullPathHTTPPathModifier {
		u.Path, u.RawPath = ptr.Deref(f.ReplaceFullPath, ""), ""
		if !strings.HasPrefix(u.Path, "/") {
			u.Path = "/" + u.Path
		}
		return
	}
	replacement := ptr.Deref(f.ReplacePrefixMatch, "")
	encoded := cleanPath(u.EscapedPath())
	u.Path = replacePrefix(cleanPath(u.Path), m.path, replacement)
	u.RawPath = ""
	if strings.HasPrefix(encoded, m.path) {
		raw := replacePrefix(encoded, m.path, replacement)
		if path, err := url.PathUnescape(raw); err == nil && path == u.Path {
			u.RawPath = raw
		}
	}
}

// replacePrefix replaces the prefix of a path that has it; prefix has no slash at its
// end.
func replacePrefix(path, prefix, by string) string {
	rest := path[len(prefix):]
	if rest != "" {
		by = strings.TrimRight(by, "/")
	}
	if path = by + rest; !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	return path
}
