package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func portOf(t *testing.T, addr string) int {
	t.Helper()
	_, p, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(addr, "https://"), "http://"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(p)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestHTTP(t *testing.T) {
	mux := http.NewServeMux()
	status := func(path string, code int) {
		mux.HandleFunc(path, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) })
	}
	status("/ok", 200)
	status("/notmodified", 304)
	status("/missing", 404)
	status("/broken", 500)
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/to-missing", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/missing", http.StatusFound) })
	mux.HandleFunc("/elsewhere", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://localhost:1/", http.StatusFound)
	})
	mux.HandleFunc("/header", func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "shop.test" || r.Header.Get("X-Probe") != "yes" || !strings.HasPrefix(r.UserAgent(), "kube-probe/") || r.URL.RawQuery != "a=1" {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	mux.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	plain, secure := httptest.NewServer(mux), httptest.NewTLSServer(mux)
	defer plain.Close()
	defer secure.Close()
	port, tlsPort := portOf(t, plain.URL), portOf(t, secure.URL)
	target := Target{IP: "127.0.0.1", Ports: []v1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}
	headers := []v1.HTTPHeader{{Name: "Host", Value: "shop.test"}, {Name: "X-Probe", Value: "yes"}}
	tests := []struct {
		name   string
		action v1.HTTPGetAction
		want   Result
	}{
		{"ok", v1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt(port)}, Success},
		{"no slash", v1.HTTPGetAction{Path: "ok", Port: intstr.FromInt(port)}, Success},
		{"below 400", v1.HTTPGetAction{Path: "/notmodified", Port: intstr.FromInt(port)}, Success},
		{"404", v1.HTTPGetAction{Path: "/missing", Port: intstr.FromInt(port)}, Failure},
		{"500", v1.HTTPGetAction{Path: "/broken", Port: intstr.FromInt(port)}, Failure},
		{"named port", v1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("web")}, Success},
		{"unknown port name", v1.HTTPGetAction{Path: "/ok", Port: intstr.FromString("nope")}, Unknown},
		{"https without verification", v1.HTTPGetAction{Path: "/ok", Port: intstr.FromInt(tlsPort), Scheme: v1.URISchemeHTTPS}, Success},
		{"headers and query", v1.HTTPGetAction{Path: "/header?a=1", Port: intstr.FromInt(port), HTTPHeaders: headers}, Success},
		{"endless redirects", v1.HTTPGetAction{Path: "/loop", Port: intstr.FromInt(port)}, Failure},
		{"redirect is followed", v1.HTTPGetAction{Path: "/to-missing", Port: intstr.FromInt(port)}, Failure},
		{"redirect elsewhere is an answer", v1.HTTPGetAction{Path: "/elsewhere", Port: intstr.FromInt(port)}, Success},
		{"endless body", v1.HTTPGetAction{Path: "/endless", Port: intstr.FromInt(port)}, Success},
		{"timeout", v1.HTTPGetAction{Path: "/slow", Port: intstr.FromInt(port)}, Failure},
		{"nobody listens", v1.HTTPGetAction{Path: "/", Port: intstr.FromInt(1)}, Failure},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := Once(context.Background(), &v1.Probe{ProbeHandler: v1.ProbeHandler{HTTPGet: &tt.action}, TimeoutSeconds: 1}, target)
			if out.Result != tt.want {
				t.Errorf("%+v, want %v", out, tt.want)
			}
			if len(out.Output) > maxOutput {
				t.Errorf("%d bytes of output kept", len(out.Output))
			}
		})
	}
}

func TestTCPExecGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	srv, checks := grpc.NewServer(), health.NewServer()
	healthpb.RegisterHealthServer(srv, checks)
	checks.SetServingStatus("up", healthpb.HealthCheckResponse_SERVING)
	checks.SetServingStatus("down", healthpb.HealthCheckResponse_NOT_SERVING)
	gl, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve(gl)
	defer srv.Stop()
	grpcPort := int32(portOf(t, gl.Addr().String()))
	service := func(s string) *string { return &s }
	target := Target{IP: "127.0.0.1", Exec: func(ctx context.Context, cmd []string) (int, string, error) {
		switch cmd[0] {
		case "good":
			return 0, "fine", nil
		case "bad":
			return 3, "broken", nil
		case "hang":
			<-ctx.Done()
			return 0, "", ctx.Err()
		}
		return 0, "", errors.New("no such container")
	}}
	exec := func(c string) v1.ProbeHandler { return v1.ProbeHandler{Exec: &v1.ExecAction{Command: []string{c}}} }
	tests := []struct {
		name    string
		handler v1.ProbeHandler
		want    Result
	}{
		{"tcp", v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(portOf(t, l.Addr().String()))}}, Success},
		{"tcp closed", v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(1)}}, Failure},
		{"tcp bad port", v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{Port: intstr.FromInt(70000)}}, Unknown},
		{"exec", exec("good"), Success},
		{"exec fails", exec("bad"), Failure},
		{"exec hangs", exec("hang"), Failure},
		{"exec cannot run", exec("lost"), Unknown},
		{"grpc", v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: grpcPort}}, Success},
		{"grpc service", v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: grpcPort, Service: service("up")}}, Success},
		{"grpc service down", v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: grpcPort, Service: service("down")}}, Failure},
		{"grpc service unknown", v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: grpcPort, Service: service("other")}}, Failure},
		{"grpc closed", v1.ProbeHandler{GRPC: &v1.GRPCAction{Port: 1}}, Failure},
		{"nothing", v1.ProbeHandler{}, Failure},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := Once(context.Background(), &v1.Probe{ProbeHandler: tt.handler, TimeoutSeconds: 1}, target)
			if out.Result != tt.want {
				t.Errorf("%+v, want %v", out, tt.want)
			}
		})
	}
}
