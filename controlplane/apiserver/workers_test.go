package apiserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	criremote "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

func tlsConfig(t *testing.T, cp *apiservertest.ControlPlane) *tls.Config {
	t.Helper()
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cp.CA.Pool()}
}

// echo is a container that repeats its input.
type echo struct{}

func (echo) ExecInContainer(_ context.Context, name, _, container string, cmd []string, in io.Reader, out, _ io.WriteCloser, _ bool, _ <-chan criremote.TerminalSize, _ time.Duration) error {
	if _, err := fmt.Fprintf(out, "%s/%s %v: ", name, container, cmd); err != nil {
		return err
	}
	_, err := io.Copy(out, in)
	return err
}

// worker is the part of a worker's HTTPS server that the API server calls.
func worker(t *testing.T, cp *apiservertest.ControlPlane) net.Listener {
	t.Helper()
	pair, err := cp.CA.Issue(pki.NodeServer("n1", "10.41.0.11"))
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/containerLogs/default/streams/web", func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "log of %s %s\n", r.TLS.PeerCertificates[0].Subject.CommonName, r.URL.RawQuery)
	})
	mux.HandleFunc("/exec/default/streams/web", func(w http.ResponseWriter, r *http.Request) {
		opts, err := criremote.NewOptions(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		criremote.ServeExec(w, r, echo{}, "streams", "", "web", r.URL.Query()["command"], opts, time.Minute, time.Minute, criremote.SupportedStreamingProtocols)
	})
	l := listen(t)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: limit}
	go func() {
		_ = server.Serve(tls.NewListener(l, &tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert},
			ClientCAs: cp.CA.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
		}))
	}()
	t.Cleanup(func() { _ = server.Close() })
	return l
}

// TestWorkers checks the way to the workers: every address there is dialled with
// the given dialer, the API server shows its certificate, and streams pass.
func TestWorkers(t *testing.T) {
	var targets = map[string]string{}
	cp := apiservertest.StartWith(t, func(c *apiserver.Config) {
		c.NodeDialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			target, ok := targets[address]
			if !ok {
				return nil, fmt.Errorf("no route to %s", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, target)
		}
	})
	targets["10.41.0.11:10250"] = worker(t, cp).Addr().String()
	web := listen(t)
	site := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, "hello "+r.URL.Path)
	}), ReadHeaderTimeout: limit}
	go func() { _ = site.Serve(web) }()
	t.Cleanup(func() { _ = site.Close() })
	targets["10.42.1.5:8080"] = web.Addr().String()

	client := kubernetes.NewForConfigOrDie(cp.Admin)
	prepareStreams(t, client)

	t.Run("log", func(t *testing.T) {
		data, err := client.CoreV1().Pods("default").GetLogs("streams", &corev1.PodLogOptions{TailLines: ptr.To(int64(3)), Timestamps: true}).DoRaw(t.Context())
		if err != nil || string(data) != "log of system:apiserver tailLines=3&timestamps=true\n" {
			t.Errorf("%q %v", data, err)
		}
	})
	t.Run("exec", func(t *testing.T) { testExec(t, cp, client) })
	t.Run("service proxy", func(t *testing.T) {
		data, err := client.CoreV1().RESTClient().Get().AbsPath("/api/v1/namespaces/default/services/web:80/proxy/a/b").DoRaw(t.Context())
		if err != nil || string(data) != "hello /a/b" {
			t.Errorf("%q %v", data, err)
		}
	})
	t.Run("kubectl", func(t *testing.T) {
		for name, run := range kubectls(t, cp.Kubeconfig) {
			out, err := run(t.Context(), "from kubectl", "exec", "-i", "streams", "--", "cat")
			if err != nil || string(out) != "streams/web [cat]: from kubectl" {
				t.Errorf("%s: %q %v", name, out, err)
			}
		}
	})
}

func prepareStreams(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	_, err := client.CoreV1().Nodes().Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "n1"},
		Status: corev1.NodeStatus{
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "10.41.0.11"}},
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: 10250}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	createPod(t, client, newPod("streams"))
	bindPod(t, client, "streams", "n1")
	_, err = client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = client.DiscoveryV1().EndpointSlices("default").Create(t.Context(), &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.42.1.4"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}},
			{Addresses: []string{"10.42.1.5"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}},
		},
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To("http"), Port: ptr.To(int32(8080))}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// testExec runs a command over SPDY and over WebSockets.
func testExec(t *testing.T, cp *apiservertest.ControlPlane, client kubernetes.Interface) {
	request := client.CoreV1().RESTClient().Post().Namespace("default").Resource("pods").Name("streams").SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"cat", "-"}, Stdin: true, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	spdy, err := remotecommand.NewSPDYExecutor(cp.Admin, http.MethodPost, request.URL())
	if err != nil {
		t.Fatal(err)
	}
	websocket, err := remotecommand.NewWebSocketExecutor(cp.Admin, http.MethodGet, request.URL().String())
	if err != nil {
		t.Fatal(err)
	}
	for name, executor := range map[string]remotecommand.Executor{"spdy": spdy, "websocket": websocket} {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: io.Discard})
		cancel()
		if err != nil || out.String() != "streams/web [cat -]: hello" {
			t.Errorf("%s: %q %v", name, out.String(), err)
		}
	}
}
