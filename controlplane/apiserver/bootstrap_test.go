package apiserver_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

// TestBootstrapFails begins a server on a cluster where another service has the address
// that the API is to have: it ends and says why.
func TestBootstrapFails(t *testing.T) {
	var cfg apiserver.Config
	cp := apiservertest.StartWith(t, func(c *apiserver.Config) { cfg = *c })
	k := kubernetes.NewForConfigOrDie(cp.Admin)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	services := k.CoreV1().Services("default")
	other := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "other"}, Spec: corev1.ServiceSpec{ClusterIP: "10.43.5.1", Ports: []corev1.ServicePort{{Port: 80}}}}
	if _, err := services.Create(ctx, other, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := services.Delete(ctx, "kubernetes", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Listeners, cfg.ServiceCIDRs = []net.Listener{l}, []netip.Prefix{netip.MustParsePrefix("10.43.5.0/24")}
	s, err := apiserver.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(ctx); err == nil || !strings.Contains(err.Error(), "write service default/kubernetes") || !strings.Contains(err.Error(), "10.43.5.1") {
		t.Errorf("it ended with %v", err)
	}
	select {
	case <-s.Ready():
		t.Error("it said that it is ready")
	default:
	}
}
