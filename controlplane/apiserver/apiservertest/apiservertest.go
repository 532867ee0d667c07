// Package apiservertest starts a whole control plane in a test: an embedded etcd
// and an API server on a loopback port, both stopped and removed at its end.
package apiservertest

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/etcd"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

// startLimit bounds the start on a busy machine.
const startLimit = 60 * time.Second

// ControlPlane is a running one.
type ControlPlane struct {
	// Server is the API server; its ClientConfig makes clients of any identity.
	Server *apiserver.Server
	// CA signs certificates for clients and workers.
	CA *pki.CA
	// URL is where the server listens.
	URL string
	// Admin is the administrator's client configuration, over TLS.
	Admin *rest.Config
	// Kubeconfig is the path of the administrator's kubeconfig file.
	Kubeconfig string
}

// Start starts a control plane and returns the administrator's configuration,
// without client-side rate limits.
func Start(t testing.TB) *rest.Config {
	t.Helper()
	return StartWith(t, nil).Admin
}

// StartWith starts a control plane whose Config adjust may change, and returns
// all of it.
func StartWith(t testing.TB, adjust func(*apiserver.Config)) *ControlPlane {
	t.Helper()
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)

	ca, err := pki.OpenCA(filepath.Join(dir, "pki"))
	must(t, err)
	serving, err := ca.Issue(pki.APIServer())
	must(t, err)
	worker, err := ca.Issue(pki.Component("apiserver-worker-client", pki.UserAPIServer))
	must(t, err)
	admin, err := ca.Issue(pki.Admin())
	must(t, err)
	store, err := etcd.Start(ctx, etcd.Config{DataDir: filepath.Join(dir, "etcd")})
	must(t, err)
	t.Cleanup(store.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)

	cfg := apiserver.Config{
		Etcd: store.Client(), CA: ca, ServingCert: serving, WorkerClientCert: worker,
		Listeners: []net.Listener{listener}, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
	if adjust != nil {
		adjust(&cfg)
	}
	server, err := apiserver.New(cfg)
	must(t, err)
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the API server ended with: %v", err)
		}
	})
	timer := time.NewTimer(startLimit)
	defer timer.Stop()
	select {
	case <-server.Ready():
	case err := <-done:
		done <- nil
		t.Fatalf("the API server did not start: %v", err)
	case <-timer.C:
		t.Fatalf("the API server is not ready after %s", startLimit)
	}
	return finish(t, dir, server, ca, admin)
}

func finish(t testing.TB, dir string, server *apiserver.Server, ca *pki.CA, admin pki.Pair) *ControlPlane {
	t.Helper()
	cp := &ControlPlane{
		Server: server, CA: ca, URL: "https://" + server.Address(),
		Kubeconfig: filepath.Join(dir, "admin.kubeconfig"),
	}
	cp.Admin = ca.RESTConfig(cp.URL, admin)
	cp.Admin.QPS, cp.Admin.Burst = -1, -1
	must(t, ca.WriteKubeconfig(cp.Kubeconfig, cp.URL, pki.UserAdmin, admin))
	_, err := os.Stat(cp.Kubeconfig)
	must(t, err)
	return cp
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
