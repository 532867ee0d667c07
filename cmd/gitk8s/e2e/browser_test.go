package e2e

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

// browserManifest has a pod with the page, which keeps its reports; pages of three
// other pods stick to a client by a cookie.
const browserManifest = `apiVersion: v1
kind: Pod
metadata: {name: page, labels: {app: page}}
spec:
  containers:
  - name: page
    image: gitk8s.local/test/web:v1
    env: [{name: PAGES, value: /pages}]
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
    volumeMounts: [{name: pages, mountPath: /pages}]
  volumes: [{name: pages, configMap: {name: pages}}]
---
apiVersion: v1
kind: Service
metadata: {name: page}
spec: {selector: {app: page}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web, annotations: {ingress.gitk8s.dev/affinity-cookie: pod}}
spec:
  tls: [{hosts: [secure.browser.test], secretName: cert}]
  rules:
  - {host: secure.browser.test, http: &web {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}
  - {host: plain.browser.test, http: *web}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: page}
spec:
  tls: [{hosts: [secure.browser.test], secretName: cert}]
  rules:
  - host: secure.browser.test
    http: &page
      paths:
      - {path: /pages, pathType: Prefix, backend: {service: {name: page, port: {number: 80}}}}
      - {path: /report, pathType: Prefix, backend: {service: {name: page, port: {number: 80}}}}
  - {host: plain.browser.test, http: *page}
`

// browserSaw is what the page, testdata/browser.html, says that it has seen.
type browserSaw struct {
	Page, Protocol, FetchProtocol, Error  string
	ClosedByServer, ClosedByPage, Refused browserSocket
	Together                              int
	PodsWithCookie, PodsWithoutCookie     int
}

type browserSocket struct {
	URL           string
	Opened        bool
	Echoed, Wrong int
	Code          int
	Reason        string
	Clean         bool
}

// findBrowser is nil if there is none.
func findBrowser() []string {
	for _, b := range [][]string{{"chromium-headless-shell"}, {"chromium", "--headless"}, {"google-chrome", "--headless"}} {
		if path, err := exec.LookPath(b[0]); err == nil {
			return append([]string{path}, b[1:]...)
		}
	}
	return nil
}

// TestBrowser has a browser load a page through an Ingress, with and without TLS, whose
// script opens WebSockets to where it came from. The browser is in a network namespace
// that has nothing but a loopback interface, at which the ports of the Ingresses are
// carried in; so it talks to nobody else.
func TestBrowser(t *testing.T) {
	t.Parallel()
	browser := findBrowser()
	if browser == nil {
		if os.Getenv("GITK8S_TEST_BROWSER") != "" {
			t.Fatal("there is no browser")
		}
		t.Skip("there is no Chromium; `make test-browser` installs it")
	}
	c := suite.shared
	ns := c.namespace(t, "browser")
	_, cert, key := selfSigned(t, "secure.browser.test")
	c.kubectl(t, "create", "secret", "tls", "cert", "-n", ns, "--cert", cert, "--key", key)
	c.kubectl(t, "create", "configmap", "pages", "-n", ns, "--from-file", "testdata/browser.html")
	c.apply(t, ns, ingressWeb+"---\n"+browserManifest)
	c.awaitPod(t, ns, "page", "it is ready", ready)
	c.awaitPods(t, ns, "app=web", "three are Ready", func(p []*corev1.Pod) bool { return len(p) == 3 && allReady(p) })
	machine := door{base: c.info.IngressHTTP}
	machine.says(t, "plain.browser.test", "/pages/browser.html", "A page behind an Ingress")
	machine.says(t, "plain.browser.test", "/", "v1 from web-")

	s := &sites{t: t, prefix: "g8s-br-"}
	handle, netNS := s.namespace("lo")
	h := s.handle(handle)
	defer h.Close()
	links, err := h.LinkList()
	if err != nil || len(links) != 1 || links[0].Attrs().Name != "lo" {
		t.Fatal(links, err)
	}
	if err := h.LinkSetUp(links[0]); err != nil {
		t.Fatal(err)
	}
	plain, secure := carryIn(t, netNS, c.info.IngressHTTP), carryIn(t, netNS, c.info.IngressHTTPS)
	for _, tt := range []struct{ name, open, page, protocol string }{
		{"plain", "http://plain.browser.test:" + plain, "http://plain.browser.test:" + plain, "http/1.1"},
		{"tls", "https://secure.browser.test:" + secure, "https://secure.browser.test:" + secure, "h2"},
		{"redirect", "http://secure.browser.test:" + plain, "https://secure.browser.test:" + secure, "h2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := "/pages/browser.html?run=" + tt.name
			ended := browse(t, c, netNS, browser, cert, tt.open+path)
			var saw browserSaw
			eventually(t, "the page reports", func() error {
				if err := ended(); err != nil {
					t.Fatal(err)
				}
				resp, body, err := machine.get(t.Context(), machine.client(nil, ""), "plain.browser.test", "/report/"+tt.name)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = errors.New(body)
				}
				if err != nil {
					return err
				}
				return json.Unmarshal([]byte(body), &saw)
			})
			at := strings.Replace(tt.page, "http", "ws", 1)
			want := browserSaw{
				Page: tt.page + path, Protocol: tt.protocol, FetchProtocol: tt.protocol,
				ClosedByServer: browserSocket{URL: at + "/echo", Opened: true, Echoed: 5, Code: 4001, Reason: "as you wish", Clean: true},
				ClosedByPage:   browserSocket{URL: at + "/echo", Opened: true, Echoed: 1, Code: 3000, Clean: true},
				// Not a handshake but a page is the answer there.
				Refused:  browserSocket{URL: at + "/readyz", Code: 1006},
				Together: 8, PodsWithCookie: 1, PodsWithoutCookie: 3,
			}
			if saw != want {
				t.Errorf("the browser saw %+v\nnot %+v", saw, want)
			}
		})
	}
}

// browse opens a page in a browser of its own, until the test ends; ended says that it
// has ended before.
func browse(t *testing.T, c *cluster, netNS string, browser []string, cert, page string) (ended func() error) {
	t.Helper()
	args := append(inNetNS(netNS, browser),
		// Nobody but root can be in the test's namespace, and as root its own sandbox cannot be had.
		"--no-sandbox", "--user-data-dir="+t.TempDir(), "--remote-debugging-port=0", "--disable-gpu", "--disable-dev-shm-usage",
		"--host-resolver-rules=MAP * 127.0.0.1", "--ignore-certificate-errors-spki-list="+publicKeyHash(t, cert),
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
		"--disable-default-apps", "--disable-breakpad", "--metrics-recording-only", "--no-proxy-server", page)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(c.env(), "HOME="+t.TempDir(), "DBUS_SESSION_BUS_ADDRESS=disabled:")
	out := newOutput()
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its group: a browser is many processes
		<-done
		if t.Failed() {
			t.Log(tail(out.String(), 30))
		}
	})
	return func() error {
		select {
		case <-done:
			return fmt.Errorf("the browser has ended: %v\n%s", cmd.ProcessState, tail(out.String(), 30))
		default:
			return nil
		}
	}
}

// publicKeyHash names a certificate's key as Chromium does, SHA-256 in base64.
func publicKeyHash(t *testing.T, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(b)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// carryIn listens at a network namespace's loopback on the port that a URL names, and
// carries connections to that URL's host. It returns the port.
func carryIn(t *testing.T, netNS, to string) (port string) {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	l, err := network.ListenIn(netNS, "tcp", net.JoinHostPort("127.0.0.1", u.Port()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { carry(ctx, in, u.Host) })
		}
	})
	return u.Port()
}

// carry joins a connection with a new one, until both are at their end or ctx is.
func carry(ctx context.Context, in net.Conn, to string) {
	defer in.Close()
	out, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return
	}
	defer out.Close()
	defer context.AfterFunc(ctx, func() { in.Close(); out.Close() })()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(in, out)
		_ = in.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(out, in)
	_ = out.(*net.TCPConn).CloseWrite()
	<-back
}
