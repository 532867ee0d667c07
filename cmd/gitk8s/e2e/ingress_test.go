package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

var ingressesGVR = networkingv1.SchemeGroupVersion.WithResource("ingresses")

// door is a way to the Ingresses of a cluster.
type door struct {
	base string // http://host:port
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// get asks for a path of a host.
func (d door) get(ctx context.Context, client *http.Client, host, path string) (*http.Response, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.base+path, nil)
	if err != nil {
		return nil, "", err
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// client makes a client that trusts nobody but roots, and asks for a server name.
func (d door) client(roots *x509.CertPool, name string) *http.Client {
	return &http.Client{
		Timeout:       10 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext: d.dial, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name}, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 32,
		},
	}
}

// says waits until a host and path are answered with a text.
func (d door) says(t *testing.T, host, path, want string) {
	t.Helper()
	client := d.client(nil, "")
	defer client.CloseIdleConnections()
	eventually(t, fmt.Sprintf("%s%s should answer %q at %s", host, path, want, d.base), func() error {
		resp, body, err := d.get(t.Context(), client, host, path)
		if err == nil && !strings.Contains(body, want) {
			err = errors.New(resp.Status + ": " + body)
		}
		return err
	})
}

// selfSigned writes a certificate for a name and returns a pool that trusts it, and
// the names of certificate and key.
func selfSigned(t *testing.T, name string) (roots *x509.CertPool, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AddCert(leaf)
	return roots, certFile, keyFile
}

const ingressWeb = `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  strategy: {rollingUpdate: {maxUnavailable: 1, maxSurge: 1}}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: web
        image: gitk8s.local/test/web:v1
        env: [{name: GRPC_PORT, value: "9090"}]
        ports: [{containerPort: 8080, name: http}, {containerPort: 9090, name: grpc}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}, {name: grpc, port: 81, targetPort: grpc, appProtocol: kubernetes.io/h2c}]
`

func ingressManifest(name, host, extra string) string {
	return fmt.Sprintf(`apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: %s}
spec:
  %s
  rules:
  - host: %s
    http:
      paths:
      - {path: /grpc.health.v1.Health, pathType: Prefix, backend: {service: {name: web, port: {name: grpc}}}}
      - {path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}
`, name, extra, host)
}

// TestIngress reaches pods by name from the machine and at the nodes.
func TestIngress(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "ingress")
	c.apply(t, ns, ingressWeb)
	c.awaitPods(t, ns, "app=web", "three are Ready", func(p []*corev1.Pod) bool { return len(p) == 3 && allReady(p) })
	const host = "shop.ingress.test"
	c.apply(t, ns, ingressManifest("web", host, ""))
	machine := door{base: c.info.IngressHTTP}
	machine.says(t, host, "/", "v1 from web-")
	await(t, c, ingressesGVR, ns, "web", "it has an address", func(i *networkingv1.Ingress) bool { return len(i.Status.LoadBalancer.Ingress) == 1 })
	contains(t, c.kubectl(t, "get", "ingress", "-n", ns, "web"), "gitk8s", host, "127.0.0.1", "80")
	contains(t, c.kubectl(t, "get", "ingressclass"), "gitk8s.dev/ingress")

	t.Run("at the nodes", func(t *testing.T) {
		for i, node := range []string{"worker-1", "worker-2"} {
			d := door{base: "http://" + ranges.Node(i + 1)[0].String(), dial: network.DialIn(network.HubNetNS(c.id()))}
			d.says(t, host, "/", "v1 from web-")
			if resp, _, err := d.get(t.Context(), d.client(nil, ""), "nobody.test", "/"); err != nil || resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s: %v %v", node, resp, err)
			}
		}
	})
	t.Run("WebSocket", func(t *testing.T) {
		at, err := url.Parse(machine.base)
		if err != nil {
			t.Fatal(err)
		}
		ws, _, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+at.Host+"/echo", http.Header{"Host": {host}})
		if err != nil {
			t.Fatal(err)
		}
		defer ws.Close()
		for _, text := range []string{"hello", strings.Repeat("x", 100_000)} {
			if err := ws.WriteMessage(websocket.TextMessage, []byte(text)); err != nil {
				t.Fatal(err)
			}
			if _, got, err := ws.ReadMessage(); err != nil || string(got) != text {
				t.Fatalf("%d bytes came back, %v", len(got), err)
			}
		}
	})
	t.Run("TLS", func(t *testing.T) { ingressTLS(t, c, ns) })
	t.Run("others' Ingresses", func(t *testing.T) {
		// Of two that were made in the same second, as these may be, the name decides.
		c.apply(t, ns, ingressManifest("web-second", host, "")+"---\n"+ingressManifest("foreign", "foreign.ingress.test", "ingressClassName: nginx"))
		i := await(t, c, ingressesGVR, ns, "web-second", "its status says what is wrong", func(i *networkingv1.Ingress) bool {
			return len(i.Status.LoadBalancer.Ingress) == 1 && i.Status.LoadBalancer.Ingress[0].Ports[0].Error != nil
		})
		if e := *i.Status.LoadBalancer.Ingress[0].Ports[0].Error; e != "gitk8s.dev/PathConflict" {
			t.Error(e)
		}
		eventually(t, "an event says who has the path", func() error {
			if out := c.kubectl(t, "describe", "ingress", "-n", ns, "web-second"); !strings.Contains(out, "is already served for Ingress "+ns+"/web") {
				return errors.New(out)
			}
			return nil
		})
		if resp, _, err := machine.get(t.Context(), machine.client(nil, ""), "foreign.ingress.test", "/"); err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("another controller's Ingress: %v %v", resp, err)
		}
	})
	t.Run("a rolling update loses no request", func(t *testing.T) { rollUnderLoad(t, c, ns, machine, host, `ingress="web"`) })
	t.Run("it goes", func(t *testing.T) {
		c.kubectl(t, "delete", "ingress", "-n", ns, "--all")
		machine.says(t, host, "/", "no Ingress and no route has this host and path")
	})
}

// ingressTLS serves a name with a certificate, speaks gRPC through it, and renews it.
func ingressTLS(t *testing.T, c *cluster, ns string) {
	const host = "secure.ingress.test"
	roots, cert, key := selfSigned(t, host)
	c.kubectl(t, "create", "secret", "tls", "cert", "-n", ns, "--cert", cert, "--key", key)
	c.apply(t, ns, ingressManifest("secure", host, "tls: [{hosts: ["+host+"], secretName: cert}]"))
	plain := door{base: c.info.IngressHTTP}
	at := strings.TrimPrefix(c.info.IngressHTTPS, "https://")
	for i, d := range []door{
		{base: c.info.IngressHTTPS},
		{base: "https://" + nodeTwo, dial: network.DialIn(network.HubNetNS(c.id()))},
	} {
		client := d.client(roots, host)
		eventually(t, fmt.Sprintf("the certificate is used (%d)", i), func() error {
			resp, body, err := d.get(t.Context(), client, host, "/")
			if err == nil && (!strings.Contains(body, "from web-") || resp.Proto != "HTTP/2.0") {
				err = errors.New(resp.Proto + " " + body)
			}
			return err
		})
		client.CloseIdleConnections()
	}
	resp, _, err := plain.get(t.Context(), plain.client(nil, ""), host, "/x")
	if err != nil || resp.StatusCode != http.StatusPermanentRedirect || !strings.HasPrefix(resp.Header.Get("Location"), "https://"+host+":") {
		t.Errorf("without TLS: %v %v", resp, err)
	}
	conn, err := grpc.NewClient(at, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: host})), grpc.WithAuthority(host))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "shop"})
	if err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("gRPC: %v %v", answer, err)
	}
	renewed, cert, key := selfSigned(t, host)
	manifest := c.kubectl(t, "create", "secret", "tls", "cert", "-n", ns, "--cert", cert, "--key", key, "--dry-run=client", "-o", "yaml")
	c.apply(t, ns, manifest)
	eventually(t, "the renewed certificate is used", func() error {
		d := door{base: c.info.IngressHTTPS}
		client := d.client(renewed, host)
		defer client.CloseIdleConnections()
		_, _, err := d.get(t.Context(), client, host, "/")
		return err
	})
}

// rollUnderLoad updates all pods of Deployment web while clients ask without a pause;
// counted is the label under which the metrics have the requests.
func rollUnderLoad(t *testing.T, c *cluster, ns string, d door, host, counted string) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var wg sync.WaitGroup
	var mu sync.Mutex
	asked, versions := 0, map[string]bool{}
	var failures []string
	for range 8 {
		wg.Go(func() {
			client := d.client(nil, "")
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				resp, body, err := d.get(context.WithoutCancel(ctx), client, host, "/")
				mu.Lock()
				asked++
				if err != nil || resp.StatusCode != http.StatusOK {
					failures = append(failures, fmt.Sprintf("%v %s", err, strings.TrimSpace(body)))
				}
				version, _, _ := strings.Cut(body, " ")
				versions[version] = true
				mu.Unlock()
			}
		})
	}
	c.kubectl(t, "set", "image", "-n", ns, "deployment/web", "web=gitk8s.local/test/web:v2")
	c.kubectl(t, "rollout", "status", "-n", ns, "deployment/web", "--timeout=90s")
	d.says(t, host, "/", "v2 from web-")
	stop()
	wg.Wait()
	t.Logf("%d requests during the update", asked)
	if len(failures) > 0 || !versions["v1"] || !versions["v2"] {
		t.Errorf("%d of %d requests failed: %s; versions %v", len(failures), asked, strings.Join(failures[:min(3, len(failures))], "; "), versions)
	}
	var m bytes.Buffer
	if err := c.metrics(t, &m); err != nil || !strings.Contains(m.String(), `gitk8s_ingress_requests_total{namespace="`+ns+`",`+counted+`,code="2xx"}`) {
		t.Errorf("metrics: %v", err)
	}
}

// metrics reads the server's.
func (c *cluster) metrics(t *testing.T, w io.Writer) error {
	token, err := os.ReadFile(filepath.Join(c.dataDir, "token"))
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.info.Metrics, nil)
	if err != nil {
		return err
	}
	req.SetBasicAuth("gitk8s", string(token))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}
