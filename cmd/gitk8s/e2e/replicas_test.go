package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

// takeover is how long a leader's lease outlives it, and what a busy machine adds.
var takeover = 15*time.Second + patience

// etcdCluster is an etcd that wants client certificates, and the flags with which
// `gitk8s server` uses it.
type etcdCluster struct{ endpoint, dir string }

// certificate writes a pair of an authority of its own name.
func (e etcdCluster) certificate(t *testing.T, authority, name string) (cert, key string) {
	t.Helper()
	ca, err := pki.OpenCA(filepath.Join(e.dir, authority))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.Ensure(pki.Request{Name: name, CommonName: name, Hosts: []string{"127.0.0.1"}, Server: true, Client: true}); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(e.dir, authority, name)
	return base + ".crt", base + ".key"
}

func (e etcdCluster) flags(t *testing.T, authority string) []string {
	t.Helper()
	cert, key := e.certificate(t, authority, "client")
	return []string{"--etcd-endpoints", e.endpoint, "--etcd-cafile", filepath.Join(e.dir, "own", "ca.crt"), "--etcd-certfile", cert, "--etcd-keyfile", key}
}

func startEtcd(t *testing.T) etcdCluster {
	t.Helper()
	e := etcdCluster{endpoint: "https://" + freeAddress(t, "127.0.0.1"), dir: t.TempDir()}
	cert, key := e.certificate(t, "own", "server")
	at, err := url.Parse(e.endpoint)
	if err != nil {
		t.Fatal(err)
	}
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(e.dir, "data")
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*at}, []url.URL{*at}
	cfg.ListenPeerUrls = []url.URL{{Scheme: "unix", Path: filepath.Join(e.dir, "peer")}}
	cfg.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "localhost:0"}}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.ClientTLSInfo = transport.TLSInfo{CertFile: cert, KeyFile: key, TrustedCAFile: filepath.Join(e.dir, "own", "ca.crt"), ClientCertAuth: true}
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	select {
	case <-server.Server.ReadyNotify():
	case err := <-server.Err():
		t.Fatal(err)
	case <-time.After(startTimeout):
		t.Fatal("etcd is not ready")
	}
	return e
}

// freeAddress is an address with a port that is free on all loopback addresses now.
func freeAddress(t *testing.T, host string) string {
	t.Helper()
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return fmt.Sprintf("%s:%d", host, l.Addr().(*net.TCPAddr).Port)
}

// replica is a server on an etcd that it shares, removed with the test.
func replica(t *testing.T, name string) *cluster {
	t.Helper()
	c := newCluster(name)
	t.Cleanup(func() {
		if t.Failed() && c.up != nil {
			t.Logf("%s\n%s", name, tail(c.up.out.String(), 60))
		}
		if r := c.run("down", "--purge"); r.code != 0 {
			t.Error(r)
		}
		if err := c.leftovers(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func copyFiles(t *testing.T, from, to string, names ...string) {
	t.Helper()
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// within is what await does, for as long as a leader's lease may take to run out.
func within(t *testing.T, limit time.Duration, what string, try func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		<-tick.C
	}
}

// leader is the address of the server that runs the loops.
func (c *cluster) leader(t *testing.T) string {
	t.Helper()
	l, err := c.k.CoordinationV1().Leases(metav1.NamespaceSystem).Get(t.Context(), "gitk8s-server", metav1.GetOptions{})
	if err != nil || l.Spec.HolderIdentity == nil {
		return ""
	}
	address, _, _ := strings.Cut(*l.Spec.HolderIdentity, "_")
	return address
}

// apiServers are the endpoints of default/kubernetes.
func (c *cluster) apiServers(t *testing.T) []string {
	t.Helper()
	s, err := c.k.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range s.Endpoints {
		out = append(out, e.Addresses...)
	}
	slices.Sort(out)
	return out
}

// rolledOut waits until all pods of a Deployment are of its newest template.
func (c *cluster) rolledOut(t *testing.T, ns, name string, replicas int32, image string, limit time.Duration) {
	t.Helper()
	within(t, limit, "the rollout to "+image, func() error {
		d, err := c.k.AppsV1().Deployments(ns).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		pods, err := c.k.CoreV1().Pods(ns).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if got := pods.Items[i].Spec.Containers[0].Image; got != image {
				return fmt.Errorf("pod %s has image %s", pods.Items[i].Name, got)
			}
		}
		if d.Status.ObservedGeneration != d.Generation || d.Status.UpdatedReplicas != replicas || len(pods.Items) != int(replicas) {
			return fmt.Errorf("%d pods, status %+v", len(pods.Items), d.Status)
		}
		return nil
	})
}

// TestReplicas runs two servers on one etcd with TLS and takes their leader away.
func TestReplicas(t *testing.T) {
	e := startEtcd(t)
	_, port, err := net.SplitHostPort(freeAddress(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	flags := func(ip, authority string) []string {
		return append([]string{"--listen", ip, "--api-port", port, "--git-port", "0", "--registry-port", "0"}, e.flags(t, authority)...)
	}
	a, b := replica(t, "replica-a"), replica(t, "replica-b")

	t.Run("a certificate that etcd does not know", func(t *testing.T) {
		r := a.run(append([]string{"server"}, flags("127.0.0.1", "strangers")...)...)
		contains(t, r.stderr, "error:", e.endpoint+" refused", "tls:", "--etcd-certfile")
		if r.code != 1 {
			t.Errorf("exit code %d", r.code)
		}
		if r := a.run("server", "--etcd-endpoints", e.endpoint, "--etcd-cafile", filepath.Join(e.dir, "strangers", "ca.crt"), "--api-port", "0"); r.code != 1 || !strings.Contains(r.stderr, "unknown authority") {
			t.Errorf("an unknown etcd: %s", r)
		}
	})

	if err := a.serve(flags("127.0.0.1", "own")...); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "the first server leads", func() error {
		if got := a.leader(t); got != "127.0.0.1:"+port {
			return fmt.Errorf("%q does", got)
		}
		return nil
	})
	t.Run("a server with another authority", func(t *testing.T) {
		r := b.run(append([]string{"server"}, flags("127.0.0.2", "own")...)...)
		contains(t, r.stderr, "another certificate authority", "pki/ca.crt, pki/ca.key and token")
		if r.code != 1 {
			t.Errorf("exit code %d", r.code)
		}
	})
	if err := os.RemoveAll(b.dataDir); err != nil {
		t.Fatal(err)
	}
	copyFiles(t, a.dataDir, b.dataDir, "pki/ca.crt", "pki/ca.key", "token")
	if err := b.serve(flags("127.0.0.2", "own")...); err != nil {
		t.Fatal(err)
	}
	within(t, patience, "both are endpoints of the API", func() error {
		if got := a.apiServers(t); !slices.Equal(got, []string{"127.0.0.1", "127.0.0.2"}) {
			return fmt.Errorf("they are %q", got)
		}
		return nil
	})

	const ns = "replicas"
	b.kubectl(t, "create", "namespace", ns)
	t.Run("what one writes the other reads", func(t *testing.T) {
		for _, pair := range []struct {
			name             string
			writer, readerOf *cluster
		}{{"through-a", a, b}, {"through-b", b, a}} {
			pair.writer.kubectl(t, "create", "configmap", "-n", ns, pair.name, "--from-literal=k=1")
			await(t, pair.readerOf, configMapsGVR, ns, pair.name, "it is there", func(cm *corev1.ConfigMap) bool { return cm.Data["k"] == "1" })
			pair.writer.kubectl(t, "patch", "configmap", "-n", ns, pair.name, "-p", `{"data":{"k":"2"}}`)
			// A plain read, not older than the write that was acknowledged.
			if got := pair.readerOf.kubectl(t, "get", "configmap", "-n", ns, pair.name, "-o", "jsonpath={.data.k}"); got != "2" {
				t.Errorf("%s: read %q after 2 was written", pair.name, got)
			}
		}
	})
	t.Run("the one that does not lead takes no push", func(t *testing.T) {
		resp, err := http.Get(b.info.Git + "/default/shop.git/info/refs?service=git-receive-pack")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s %v", resp.Status, err)
		}
		contains(t, string(body), "does not lead", "127.0.0.1:"+port)
	})

	b.apply(t, ns, `apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {type: Recreate}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: "example.invalid/web:v1"}]}
`)
	b.rolledOut(t, ns, "web", 3, "example.invalid/web:v1", patience)

	t.Run("the other takes over", func(t *testing.T) {
		a.kill()
		killed := time.Now()
		b.kubectl(t, "set", "image", "-n", ns, "deployment/web", "web=example.invalid/web:v2")
		await(t, b, deploymentsGVR, ns, "web", "the change is stored", func(d *appsv1.Deployment) bool {
			return d.Spec.Template.Spec.Containers[0].Image == "example.invalid/web:v2"
		})
		b.rolledOut(t, ns, "web", 3, "example.invalid/web:v2", takeover)
		t.Logf("took over and rolled out %v after the leader's end", time.Since(killed).Round(100*time.Millisecond))
		if got := b.leader(t); got != "127.0.0.2:"+port {
			t.Errorf("%q leads", got)
		}
		within(t, takeover, "the dead server is no endpoint", func() error {
			if got := b.apiServers(t); !slices.Equal(got, []string{"127.0.0.2"}) {
				return fmt.Errorf("they are %q", got)
			}
			return nil
		})
	})
	t.Run("an orderly end hands over at once", func(t *testing.T) {
		if err := a.serve(flags("127.0.0.1", "own")...); err != nil {
			t.Fatal(err)
		}
		stopped := time.Now()
		if err := b.interrupt(); err != nil {
			t.Fatal(err)
		}
		a.kubectl(t, "set", "image", "-n", ns, "deployment/web", "web=example.invalid/web:v3")
		a.rolledOut(t, ns, "web", 3, "example.invalid/web:v3", takeover)
		// A lease that was not given back lasts as long as it was renewed for.
		if took := time.Since(stopped); took > 12*time.Second {
			t.Errorf("it took %v", took)
		}
		t.Logf("handed over and rolled out %v after the interrupt", time.Since(stopped).Round(100*time.Millisecond))
		within(t, takeover, "the server that ended is no endpoint", func() error {
			if got := a.apiServers(t); !slices.Equal(got, []string{"127.0.0.1"}) {
				return fmt.Errorf("they are %q", got)
			}
			return nil
		})
		a.kubectl(t, "delete", "namespace", ns, "--timeout=60s")
	})
}
