package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
)

const (
	userAgent    = "kube-probe/1.34"
	maxRedirects = 10
)

var errOtherHost = errors.New("redirect to another host")

func runHTTP(ctx context.Context, a *v1.HTTPGetAction, t Target) Outcome {
	req, err := httpRequest(ctx, a, t)
	if err != nil {
		return Outcome{Unknown, err.Error()}
	}
	// A connection of its own for each question: a kept one would hide a listener
	// that went away. Certificates are not verified, as Kubernetes documents.
	transport := &http.Transport{
		DisableKeepAlives:  true,
		DisableCompression: true,
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
		Proxy:              nil,
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(next *http.Request, via []*http.Request) error {
		if next.URL.Hostname() != via[0].URL.Hostname() {
			return errOtherHost
		}
		if len(via) >= maxRedirects {
			return fmt.Errorf("stopped after %d redirects", maxRedirects)
		}
		return nil
	}}
	resp, err := client.Do(req)
	if errors.Is(err, errOtherHost) && resp != nil {
		// Kubernetes does not follow it and takes the redirect itself as an answer.
		return Outcome{Success, "Probe terminated redirects"}
	}
	if err != nil {
		return Outcome{Failure, err.Error()}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput))
	if err != nil {
		return Outcome{Failure, err.Error()}
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 400 {
		return Outcome{Success, string(body)}
	}
	return Outcome{Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", resp.StatusCode)}
}

func httpRequest(ctx context.Context, a *v1.HTTPGetAction, t Target) (*http.Request, error) {
	port, err := t.port(a.Port)
	if err != nil {
		return nil, err
	}
	host := a.Host
	if host == "" {
		host = t.IP
	}
	scheme := strings.ToLower(string(a.Scheme))
	if scheme == "" {
		scheme = "http"
	}
	u, err := url.Parse(a.Path)
	if err != nil {
		u = &url.URL{Path: a.Path}
	}
	u.Scheme, u.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	if !strings.HasPrefix(u.Path, "/") {
		u.Path = "/" + u.Path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set("Accept", "*/*")
	req.Header.Set("Connection", "close")
	for i, h := range a.HTTPHeaders {
		switch {
		case strings.EqualFold(h.Name, "Host"):
			req.Host = h.Value
		case i == 0 || !headerSeen(a.HTTPHeaders[:i], h.Name):
			req.Header.Set(h.Name, h.Value)
		default:
			req.Header.Add(h.Name, h.Value)
		}
	}
	return req, nil
}

func headerSeen(headers []v1.HTTPHeader, name string) bool {
	for _, h := range headers {
		if strings.EqualFold(h.Name, name) {
			return true
		}
	}
	return false
}
