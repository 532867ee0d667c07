package e2e

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"gitk8s.dev/gitk8s/runtime/network"
)

var (
	gatewaysGVR   = gatewayv1.SchemeGroupVersion.WithResource("gateways")
	httpRoutesGVR = gatewayv1.SchemeGroupVersion.WithResource("httproutes")
)

// stock runs the machine's own kubectl, where it has one.
func (c *cluster) stock(t *testing.T, stdin string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("kubectl")
	if err != nil {
		return c.kubectl(t, args...)
	}
	r := c.exec("", stdin, append([]string{path, "--kubeconfig", c.info.Kubeconfig}, args...)...)
	if r.code != 0 {
		t.Fatal(r)
	}
	return r.stdout + r.stderr
}

// gatewayCanary is the second version of web, beside the first.
const gatewayCanary = `---
apiVersion: apps/v1
kind: Deployment
metadata: {name: canary}
spec:
  selector: {matchLabels: {app: canary}}
  template:
    metadata: {labels: {app: canary}}
    spec:
      containers:
      - name: web
        image: gitk8s.local/test/web:v2
        ports: [{containerPort: 8080, name: http}]
        readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: canary}
spec: {selector: {app: canary}, ports: [{name: http, port: 80, targetPort: http}]}
`

const gatewayFront = `---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec:
  gatewayClassName: gitk8s
  listeners:
  - {name: http, port: 80, protocol: HTTP, hostname: "*.gateway.test"}
  - name: https
    port: 443
    protocol: HTTPS
    hostname: "*.gateway.test"
    tls: {certificateRefs: [{name: cert}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec:
  parentRefs: [{name: front}]
  hostnames: [shop.gateway.test]
  rules:
  - backendRefs: [{name: web, port: 80}]
  - matches: [{headers: [{name: x-canary, value: always}]}]
    backendRefs: [{name: canary, port: 80}]
  - matches: [{path: {value: /split}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}}]
    backendRefs: [{name: web, port: 80, weight: 90}, {name: canary, port: 80, weight: 10}]
  - matches: [{path: {type: Exact, value: /moved}}]
    filters: [{type: RequestRedirect, requestRedirect: {scheme: https, path: {type: ReplaceFullPath, replaceFullPath: /here}, statusCode: 301}}]
`

// TestGateway serves routes of a Gateway: by name, path and header, with TLS, shared
// out by weight, and from other namespaces where that is granted.
func TestGateway(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "gateway")
	c.apply(t, ns, ingressWeb+gatewayCanary)
	roots, cert, key := selfSigned(t, "shop.gateway.test")
	c.kubectl(t, "create", "secret", "tls", "cert", "-n", ns, "--cert", cert, "--key", key)
	c.awaitPods(t, ns, "app", "all are Ready", func(p []*corev1.Pod) bool { return len(p) == 4 && allReady(p) })
	contains(t, c.stock(t, gatewayFront, "apply", "-n", ns, "-f", "-"), "gateway.gateway.networking.k8s.io/front created", "httproute.gateway.networking.k8s.io/web created")
	const host = "shop.gateway.test"
	machine := door{base: c.info.IngressHTTP}
	machine.says(t, host, "/", "v1 from web-")

	t.Run("status", func(t *testing.T) { gatewayStatus(t, c, ns) })
	t.Run("at the nodes", func(t *testing.T) {
		for i := range 2 {
			d := door{base: "http://" + []string{nodeOne, nodeTwo}[i], dial: network.DialIn(network.HubNetNS(c.id()))}
			d.says(t, host, "/", "v1 from web-")
			if resp, _, err := d.get(t.Context(), d.client(nil, ""), "shop.elsewhere.test", "/"); err != nil || resp.StatusCode != http.StatusNotFound {
				t.Errorf("another name: %v %v", resp, err)
			}
		}
	})
	t.Run("curl", func(t *testing.T) { gatewayCurl(t, c, host, cert) })
	t.Run("weights", func(t *testing.T) { gatewayWeights(t, machine, host) })
	t.Run("the certificate is renewed", func(t *testing.T) {
		d := door{base: c.info.IngressHTTPS}
		client := d.client(roots, host)
		if _, body, err := d.get(t.Context(), client, host, "/"); err != nil || !strings.Contains(body, "from web-") {
			t.Fatal(body, err)
		}
		client.CloseIdleConnections()
		renewed, cert, key := selfSigned(t, host)
		c.apply(t, ns, c.kubectl(t, "create", "secret", "tls", "cert", "-n", ns, "--cert", cert, "--key", key, "--dry-run=client", "-o", "yaml"))
		eventually(t, "the renewed certificate is used", func() error {
			client := d.client(renewed, host)
			defer client.CloseIdleConnections()
			_, _, err := d.get(t.Context(), client, host, "/")
			return err
		})
	})
	t.Run("gRPC", func(t *testing.T) { gatewayGRPC(t, c, ns) })
	t.Run("another namespace", func(t *testing.T) { gatewayGrant(t, c, ns, machine) })
	t.Run("another port", func(t *testing.T) { gatewayPort(t, c, ns) })
	t.Run("what is not served", func(t *testing.T) {
		c.apply(t, ns, `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: mirror}
spec:
  parentRefs: [{name: front}]
  hostnames: [mirror.gateway.test]
  rules: [{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: canary, port: 80}}}], backendRefs: [{name: web, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: odd}
spec: {gatewayClassName: gitk8s, listeners: [{name: odd, port: 10250, protocol: HTTP}]}
`)
		awaitRoute(t, c, ns, "mirror", "Accepted", metav1.ConditionFalse, "UnsupportedValue")
		await(t, c, gatewaysGVR, ns, "odd", "its port is not served", func(g *gatewayv1.Gateway) bool {
			return len(g.Status.Listeners) == 1 && meta.FindStatusCondition(g.Status.Listeners[0].Conditions, "Accepted").Reason == "PortUnavailable" &&
				meta.IsStatusConditionFalse(g.Status.Conditions, "Programmed")
		})
		machine.says(t, "mirror.gateway.test", "/", "no Ingress and no route has this host and path")
	})
	t.Run("a rolling update loses no request", func(t *testing.T) { rollUnderLoad(t, c, ns, machine, host, `httproute="web"`) })
	t.Run("it goes", func(t *testing.T) {
		c.kubectl(t, "delete", "gateway", "front", "-n", ns)
		machine.says(t, host, "/", "no Ingress and no route has this host and path")
		await(t, c, httpRoutesGVR, ns, "web", "it has no parent any more", func(r *gatewayv1.HTTPRoute) bool { return len(r.Status.Parents) == 0 })
	})
}

// gatewayStatus looks at what kubectl prints, and that nothing is written twice.
func gatewayStatus(t *testing.T, c *cluster, ns string) {
	await(t, c, gatewaysGVR, ns, "front", "it is Programmed with both listeners", func(g *gatewayv1.Gateway) bool {
		return meta.IsStatusConditionTrue(g.Status.Conditions, "Programmed") && len(g.Status.Listeners) == 2 &&
			meta.IsStatusConditionTrue(g.Status.Listeners[1].Conditions, "Programmed") && g.Status.Listeners[1].AttachedRoutes == 1
	})
	contains(t, strings.Join(strings.Fields(c.stock(t, "", "get", "gateways", "-n", ns)), " "), "NAME CLASS ADDRESS PROGRAMMED AGE front gitk8s 127.0.0.1 True")
	contains(t, strings.Join(strings.Fields(c.stock(t, "", "get", "gatewayclass")), " "), "gitk8s gitk8s.dev/gateway True")
	awaitRoute(t, c, ns, "web", "Accepted", metav1.ConditionTrue, "Accepted")
	contains(t, strings.Join(strings.Fields(c.stock(t, "", "describe", "httproute", "web", "-n", ns)), " "), "Controller Name: gitk8s.dev/gateway", "Reason: ResolvedRefs", "Type: Accepted")
	before := await(t, c, httpRoutesGVR, ns, "web", "it is there", func(*gatewayv1.HTTPRoute) bool { return true }).ResourceVersion
	c.kubectl(t, "scale", "-n", ns, "deployment/canary", "--replicas=2") // makes new tables
	c.awaitPods(t, ns, "app=canary", "two are Ready", func(p []*corev1.Pod) bool { return len(p) == 2 && allReady(p) })
	if after := await(t, c, httpRoutesGVR, ns, "web", "it is there", func(*gatewayv1.HTTPRoute) bool { return true }).ResourceVersion; after != before {
		t.Errorf("the status was written again, %s is %s", before, after)
	}
}

// gatewayCurl asks with a client that is not ours.
func gatewayCurl(t *testing.T, c *cluster, host, cert string) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		missing(t, "curl")
	}
	plain, secure := strings.TrimPrefix(c.info.IngressHTTP, "http://"), strings.TrimPrefix(c.info.IngressHTTPS, "https://")
	ip, port, _ := strings.Cut(secure, ":")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-H", "Host: " + host, "-H", "x-canary: always", c.info.IngressHTTP}, "v2 from canary-"},
		{[]string{"--cacert", cert, "--resolve", host + ":" + port + ":" + ip, "https://" + host + ":" + port + "/"}, "v1 from web-"},
		{[]string{"-i", "-H", "Host: " + host, "http://" + plain + "/moved"}, "Location: https://" + host + ":" + port + "/here"},
		{[]string{"-i", "-H", "Host: none.gateway.test", "http://" + plain + "/"}, "404 Not Found"},
	} {
		if r := c.exec("", "", append([]string{curl, "-sS", "--max-time", "20"}, tt.args...)...); r.code != 0 || !strings.Contains(r.stdout, tt.want) {
			t.Errorf("%v: %v", tt.args, r)
		}
	}
}

// gatewayWeights counts where requests go that are split 90 to 10.
func gatewayWeights(t *testing.T, machine door, host string) {
	const n, share = 1000, 0.1
	client := machine.client(nil, "")
	defer client.CloseIdleConnections()
	canary := 0
	for range n {
		resp, body, err := machine.get(t.Context(), client, host, "/split")
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatal(resp, err)
		}
		if strings.HasPrefix(body, "v2 ") {
			canary++
		}
	}
	// Six standard deviations: by chance once in a billion runs.
	if deviation := math.Sqrt(n * share * (1 - share)); math.Abs(float64(canary)-n*share) > 6*deviation {
		t.Errorf("%d of %d requests went to the canary, want %v", canary, n, n*share)
	}
	t.Logf("%d of %d requests went to the canary", canary, n)
}

// gatewayGRPC calls a service by a GRPCRoute.
func gatewayGRPC(t *testing.T, c *cluster, ns string) {
	c.apply(t, ns, `apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: health}
spec:
  parentRefs: [{name: front}]
  hostnames: [calls.gateway.test]
  rules: [{matches: [{method: {service: grpc.health.v1.Health}}], backendRefs: [{name: web, port: 81}]}]
`)
	conn, err := grpc.NewClient(strings.TrimPrefix(c.info.IngressHTTP, "http://"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("calls.gateway.test"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	eventually(t, "gRPC is answered", func() error {
		answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{Service: "shop"})
		if err == nil && answer.Status != healthpb.HealthCheckResponse_SERVING {
			err = errors.New(answer.String())
		}
		return err
	})
}

// gatewayPort serves a listener at a port of its own.
func gatewayPort(t *testing.T, c *cluster, ns string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	c.apply(t, ns, fmt.Sprintf(`apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: port}
spec: {gatewayClassName: gitk8s, listeners: [{name: http, port: %d, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: port}
spec: {parentRefs: [{name: port}], rules: [{backendRefs: [{name: canary, port: 80}]}]}
`, port))
	door{base: fmt.Sprintf("http://127.0.0.1:%d", port)}.says(t, "any.test", "/", "v2 from canary-")
	door{base: fmt.Sprintf("http://%s:%d", nodeTwo, port), dial: network.DialIn(network.HubNetNS(c.id()))}.says(t, "any.test", "/", "v2 from canary-")
}

// awaitRoute waits for a condition of a route's first parent.
func awaitRoute(t *testing.T, c *cluster, ns, name, kind string, status metav1.ConditionStatus, reason string) {
	t.Helper()
	await(t, c, httpRoutesGVR, ns, name, fmt.Sprintf("its condition %s is %s, %s", kind, status, reason), func(r *gatewayv1.HTTPRoute) bool {
		if len(r.Status.Parents) == 0 {
			return false
		}
		cond := meta.FindStatusCondition(r.Status.Parents[0].Conditions, kind)
		return cond != nil && cond.Status == status && cond.Reason == reason && cond.ObservedGeneration == r.Generation
	})
}

// gatewayGrant sends requests to a service, and serves a certificate, of another
// namespace, which is refused until that namespace grants it.
func gatewayGrant(t *testing.T, c *cluster, ns string, machine door) {
	far := c.namespace(t, "gateway-far")
	c.apply(t, far, ingressWeb)
	const host = "far.gateway.test"
	roots, cert, key := selfSigned(t, host)
	c.kubectl(t, "create", "secret", "tls", "far", "-n", far, "--cert", cert, "--key", key)
	c.awaitPods(t, far, "app=web", "all are Ready", func(p []*corev1.Pod) bool { return len(p) == 3 && allReady(p) })
	c.apply(t, ns, `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: far}
spec:
  parentRefs: [{name: front, sectionName: http}, {name: far}]
  hostnames: [`+host+`]
  rules: [{backendRefs: [{name: web, namespace: `+far+`, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: far}
spec:
  gatewayClassName: gitk8s
  listeners: [{name: https, port: 443, protocol: HTTPS, hostname: `+host+`, tls: {certificateRefs: [{name: far, namespace: `+far+`}]}}]
`)
	awaitRoute(t, c, ns, "far", "ResolvedRefs", metav1.ConditionFalse, "RefNotPermitted")
	await(t, c, gatewaysGVR, ns, "far", "its certificate is refused", func(g *gatewayv1.Gateway) bool {
		return len(g.Status.Listeners) == 1 && meta.FindStatusCondition(g.Status.Listeners[0].Conditions, "ResolvedRefs").Reason == "RefNotPermitted"
	})
	client := machine.client(nil, "")
	defer client.CloseIdleConnections()
	if resp, body, err := machine.get(t.Context(), client, host, "/"); err != nil || resp.StatusCode != http.StatusInternalServerError {
		t.Errorf("refused: %v %q %v", resp, body, err)
	}
	grant := `apiVersion: gateway.networking.k8s.io/v1beta1
kind: ReferenceGrant
metadata: {name: shop}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: ` + ns + `}, {group: gateway.networking.k8s.io, kind: Gateway, namespace: ` + ns + `}]
  to: [{group: "", kind: Service, name: web}, {group: "", kind: Secret, name: far}]
`
	c.apply(t, far, grant)
	machine.says(t, host, "/", "v1 from web-")
	awaitRoute(t, c, ns, "far", "ResolvedRefs", metav1.ConditionTrue, "ResolvedRefs")
	// At a node, whose worker reads the Secret only since it is granted.
	for i, d := range []door{{base: c.info.IngressHTTPS}, {base: "https://" + nodeOne, dial: network.DialIn(network.HubNetNS(c.id()))}} {
		eventually(t, fmt.Sprintf("the certificate is used (%d)", i), func() error {
			client := d.client(roots, host)
			defer client.CloseIdleConnections()
			_, body, err := d.get(t.Context(), client, host, "/")
			if err == nil && !strings.Contains(body, "from web-") {
				err = errors.New(body)
			}
			return err
		})
	}
	c.kubectl(t, "delete", "referencegrant", "shop", "-n", far)
	awaitRoute(t, c, ns, "far", "ResolvedRefs", metav1.ConditionFalse, "RefNotPermitted")
	eventually(t, "requests are refused again", func() error {
		resp, body, err := machine.get(t.Context(), client, host, "/")
		if err == nil && resp.StatusCode != http.StatusInternalServerError {
			err = errors.New(resp.Status + body)
		}
		return err
	})
}

// TestGatewayByGit deploys a Gateway with its route by a push, which ends when they
// are served.
func TestGatewayByGit(t *testing.T) {
	t.Parallel()
	c := suite.shared
	ns := c.namespace(t, "gateway-git")
	r := newRepo(t, c)
	manifests := `apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web}
spec: {parentRefs: [{name: front}], hostnames: [git.gateway.test], rules: [{backendRefs: [{name: web, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: front}
spec: {gatewayClassName: gitk8s, listeners: [{name: http, port: 80, protocol: HTTP, hostname: git.gateway.test}]}
`
	files := shop{tag: "v1", message: "hello", replicas: 1}.files()
	files["gateway.yaml"] = manifests
	r.commit("a gateway", files)
	r.add(ns, "shop")
	contains(t, r.deploy(), "create", "gateway.gateway.networking.k8s.io/front", "httproute.gateway.networking.k8s.io/web", "deployed: Ready after")
	d := door{base: c.info.IngressHTTP}
	client := d.client(nil, "")
	defer client.CloseIdleConnections()
	if _, body, err := d.get(t.Context(), client, "git.gateway.test", "/"); err != nil || !strings.Contains(body, "v1 from web-") {
		t.Errorf("right after the deploy: %q %v", body, err)
	}
	files["gateway.yaml"] = strings.Replace(manifests, "port: 80, protocol: HTTP", "port: 70000, protocol: HTTP", 1)
	r.commit("no such port", files)
	if out := r.try("push", "gitk8s", "main"); out.code == 0 || !strings.Contains(out.stdout+out.stderr, "spec.listeners[0].port") {
		t.Errorf("a Gateway that is not valid: %v", out)
	}
	files["gateway.yaml"] = ""
	r.commit("without", files)
	r.deploy()
	if left := strings.TrimSpace(c.kubectl(t, "get", "gateways,httproutes", "-n", ns, "-o", "name")); left != "" {
		t.Errorf("left: %s", left)
	}
}
