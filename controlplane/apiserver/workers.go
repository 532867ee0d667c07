package apiserver

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"
	genericrest "k8s.io/apiserver/pkg/registry/generic/rest"
	"k8s.io/apiserver/pkg/registry/rest"
	utilproxy "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// workers reaches the HTTPS servers of the workers for the subresources of pods
// that stream. The paths are those of Kubernetes' kubelet.
type workers struct {
	server *Server
	pods   *store
}

// newWorkerTransport returns the transport to the workers' HTTPS servers. It
// speaks HTTP/1.1: SPDY upgrades cannot be done over HTTP/2.
func newWorkerTransport(cfg Config) (*http.Transport, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: cfg.CA.Pool(), NextProtos: []string{"http/1.1"}}
	pair, err := cfg.WorkerClientCert.TLS()
	if err != nil {
		return nil, fmt.Errorf("apiserver: read the client certificate for the workers: %w", err)
	}
	config.Certificates = []tls.Certificate{pair}
	return &http.Transport{
		DialContext: cfg.NodeDialer, TLSClientConfig: config,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}, nil
}

func newDirectTransport(cfg Config) *http.Transport {
	return &http.Transport{DialContext: cfg.NodeDialer}
}

func (w *workers) pod(ctx context.Context, name string) (*corev1.Pod, error) {
	obj, err := w.pods.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Pod), nil
}

// locate returns the URL on a pod's worker for one of its containers.
func (w *workers) locate(ctx context.Context, pod *corev1.Pod, endpoint, container string, query url.Values) (*url.URL, error) {
	if pod.Spec.NodeName == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", pod.Name))
	}
	host, err := w.server.nodeAddress(ctx, pod.Spec.NodeName)
	if err != nil {
		return nil, err
	}
	parts := []string{"", endpoint, pod.Namespace, pod.Name}
	if container != "" {
		parts = append(parts, container)
	}
	return &url.URL{Scheme: "https", Host: host, Path: strings.Join(parts, "/"), RawQuery: query.Encode()}, nil
}

// nodeAddress is the address of a worker's HTTPS server as its Node tells it.
func (s *Server) nodeAddress(ctx context.Context, name string) (string, error) {
	obj, err := s.stores[corev1.Resource("nodes")].Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	node := obj.(*corev1.Node)
	port := node.Status.DaemonEndpoints.KubeletEndpoint.Port
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeHostName} {
		for _, a := range node.Status.Addresses {
			if a.Type == kind && port > 0 {
				return net.JoinHostPort(a.Address, strconv.Itoa(int(port))), nil
			}
		}
	}
	return "", apierrors.NewServiceUnavailable(fmt.Sprintf("node %s has not told the address and port of its worker yet", name))
}

// containerOf returns the container that a request is about.
func containerOf(pod *corev1.Pod, name string, withInit bool) (string, error) {
	var all, inits, ephemeral []string
	for i := range pod.Spec.Containers {
		all = append(all, pod.Spec.Containers[i].Name)
	}
	for i := range pod.Spec.InitContainers {
		inits = append(inits, pod.Spec.InitContainers[i].Name)
	}
	for i := range pod.Spec.EphemeralContainers {
		ephemeral = append(ephemeral, pod.Spec.EphemeralContainers[i].Name)
	}
	if name == "" {
		if len(all) == 1 {
			return all[0], nil
		}
		if chosen := pod.Annotations["kubectl.kubernetes.io/default-container"]; slices.Contains(all, chosen) {
			return chosen, nil
		}
		message := fmt.Sprintf("a container name must be specified for pod %s, choose one of: %v", pod.Name, all)
		if withInit && len(inits) > 0 {
			message += fmt.Sprintf(" or one of the init containers: %v", inits)
		}
		if withInit && len(ephemeral) > 0 {
			message += fmt.Sprintf(" or one of the ephemeral containers: %v", ephemeral)
		}
		return "", apierrors.NewBadRequest(message)
	}
	if !slices.Contains(slices.Concat(all, inits, ephemeral), name) {
		return "", apierrors.NewBadRequest(fmt.Sprintf("container %s is not valid for pod %s", name, pod.Name))
	}
	return name, nil
}

// logREST is pods/log.
type logREST struct{ *workers }

var _ rest.GetterWithOptions = &logREST{}

// New implements rest.Storage.
func (*logREST) New() runtime.Object { return &corev1.Pod{} }

// Destroy implements rest.Storage.
func (*logREST) Destroy() {}

// ProducesMIMETypes implements rest.StorageMetadata.
func (*logREST) ProducesMIMETypes(string) []string { return []string{"text/plain"} }

// ProducesObject implements rest.StorageMetadata.
func (*logREST) ProducesObject(string) any { return "" }

// NewGetOptions implements rest.GetterWithOptions.
func (*logREST) NewGetOptions() (runtime.Object, bool, string) {
	return &corev1.PodLogOptions{}, false, ""
}

// OverrideMetricsVerb keeps followed logs out of the latency of gets.
func (*logREST) OverrideMetricsVerb(verb string) string {
	if verb == "GET" {
		return "CONNECT"
	}
	return verb
}

// Get implements rest.GetterWithOptions.
func (l *logREST) Get(ctx context.Context, name string, options runtime.Object) (runtime.Object, error) {
	opts, ok := options.(*corev1.PodLogOptions)
	if !ok {
		return nil, fmt.Errorf("apiserver: invalid log options %T", options)
	}
	if errs := validation.PodLogOptions(opts); len(errs) > 0 {
		return nil, apierrors.NewInvalid(corev1.SchemeGroupVersion.WithKind("PodLogOptions").GroupKind(), name, errs)
	}
	pod, err := l.pod(ctx, name)
	if err != nil {
		return nil, err
	}
	container, err := containerOf(pod, opts.Container, true)
	if err != nil {
		return nil, err
	}
	location, err := l.locate(ctx, pod, "containerLogs", container, logQuery(opts))
	if err != nil {
		return nil, err
	}
	return &genericrest.LocationStreamer{
		Location:        location,
		Transport:       l.server.workerTransport,
		ContentType:     "text/plain",
		Flush:           opts.Follow,
		ResponseChecker: genericrest.NewGenericHttpResponseChecker(corev1.Resource("pods/log"), name),
		RedirectChecker: genericrest.PreventRedirects,
	}, nil
}

func logQuery(o *corev1.PodLogOptions) url.Values {
	q := url.Values{}
	flag := func(name string, on bool) {
		if on {
			q.Set(name, "true")
		}
	}
	number := func(name string, n *int64) {
		if n != nil {
			q.Set(name, strconv.FormatInt(*n, 10))
		}
	}
	flag("follow", o.Follow)
	flag("previous", o.Previous)
	flag("timestamps", o.Timestamps)
	number("sinceSeconds", o.SinceSeconds)
	number("tailLines", o.TailLines)
	number("limitBytes", o.LimitBytes)
	if o.Stream != nil {
		q.Set("stream", *o.Stream)
	}
	if o.SinceTime != nil {
		q.Set("sinceTime", o.SinceTime.UTC().Format("2006-01-02T15:04:05Z07:00"))
	}
	return q
}

// responder hands proxy errors to the API's error writer.
type responder struct{ rest.Responder }

// Error implements proxy.ErrorResponder.
func (r responder) Error(_ http.ResponseWriter, _ *http.Request, err error) { r.Responder.Error(err) }

// stream proxies exec and attach: SPDY as it is, and WebSocket clients (kubectl
// 1.31 and newer) translated to it, as kube-apiserver does (KEP-4006).
func (w *workers) stream(location *url.URL, opts utilproxy.Options, r rest.Responder) http.Handler {
	plain := proxy.NewUpgradeAwareHandler(location, w.server.workerTransport, false, true, responder{r})
	translator := utilproxy.NewStreamTranslatorHandler(location, w.server.workerTransport, 0, opts)
	return utilproxy.NewTranslatingHandler(plain, translator, wsstream.IsWebSocketRequestWithStreamCloseProtocol)
}

func streamQuery(stdin, stdout, stderr, tty bool, command []string) (url.Values, error) {
	if !stdin && !stdout && !stderr {
		return nil, apierrors.NewBadRequest("you must specify at least one of stdin, stdout, stderr")
	}
	if tty && stderr {
		return nil, apierrors.NewBadRequest("tty and stderr cannot both be true")
	}
	q := url.Values{}
	for name, on := range map[string]bool{"input": stdin, "output": stdout, "error": stderr, "tty": tty} {
		if on {
			q.Set(name, "1")
		}
	}
	for _, c := range command {
		q.Add("command", c)
	}
	return q, nil
}

// connecter is what the connect subresources have in common.
type connecter struct{}

// New implements rest.Storage.
func (connecter) New() runtime.Object { return &corev1.Pod{} }

// Destroy implements rest.Storage.
func (connecter) Destroy() {}

// ConnectMethods implements rest.Connecter; WebSocket handshakes are GETs.
func (connecter) ConnectMethods() []string { return []string{http.MethodGet, http.MethodPost} }

// execREST is pods/exec.
type execREST struct{ *workers }

// attachREST is pods/attach.
type attachREST struct{ *workers }

// portForwardREST is pods/portforward.
type portForwardREST struct{ *workers }

var (
	_ rest.Connecter = &execREST{}
	_ rest.Connecter = &attachREST{}
	_ rest.Connecter = &portForwardREST{}
)

// New implements rest.Storage.
func (*execREST) New() runtime.Object { return connecter{}.New() }

// Destroy implements rest.Storage.
func (*execREST) Destroy() {}

// ConnectMethods implements rest.Connecter.
func (*execREST) ConnectMethods() []string { return connecter{}.ConnectMethods() }

// NewConnectOptions implements rest.Connecter.
func (*execREST) NewConnectOptions() (runtime.Object, bool, string) {
	return &corev1.PodExecOptions{}, false, ""
}

// Connect implements rest.Connecter.
func (e *execREST) Connect(ctx context.Context, name string, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.PodExecOptions)
	if !ok {
		return nil, fmt.Errorf("apiserver: invalid exec options %T", options)
	}
	q, err := streamQuery(o.Stdin, o.Stdout, o.Stderr, o.TTY, o.Command)
	if err != nil {
		return nil, err
	}
	if len(o.Command) == 0 {
		return nil, apierrors.NewBadRequest("you must specify at least one command for the container")
	}
	location, err := e.container(ctx, name, "exec", o.Container, q)
	if err != nil {
		return nil, err
	}
	return e.stream(location, utilproxy.Options{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY}, r), nil
}

// container locates a running container for exec and attach.
func (w *workers) container(ctx context.Context, name, endpoint, container string, q url.Values) (*url.URL, error) {
	pod, err := w.pod(ctx, name)
	if err != nil {
		return nil, err
	}
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("cannot %s a container in a completed pod; current phase is %s", endpoint, pod.Status.Phase))
	}
	if container, err = containerOf(pod, container, false); err != nil {
		return nil, err
	}
	return w.locate(ctx, pod, endpoint, container, q)
}

// New implements rest.Storage.
func (*attachREST) New() runtime.Object { return connecter{}.New() }

// Destroy implements rest.Storage.
func (*attachREST) Destroy() {}

// ConnectMethods implements rest.Connecter.
func (*attachREST) ConnectMethods() []string { return connecter{}.ConnectMethods() }

// NewConnectOptions implements rest.Connecter.
func (*attachREST) NewConnectOptions() (runtime.Object, bool, string) {
	return &corev1.PodAttachOptions{}, false, ""
}

// Connect implements rest.Connecter.
func (a *attachREST) Connect(ctx context.Context, name string, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.PodAttachOptions)
	if !ok {
		return nil, fmt.Errorf("apiserver: invalid attach options %T", options)
	}
	q, err := streamQuery(o.Stdin, o.Stdout, o.Stderr, o.TTY, nil)
	if err != nil {
		return nil, err
	}
	location, err := a.container(ctx, name, "attach", o.Container, q)
	if err != nil {
		return nil, err
	}
	return a.stream(location, utilproxy.Options{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Tty: o.TTY}, r), nil
}

// New implements rest.Storage.
func (*portForwardREST) New() runtime.Object { return connecter{}.New() }

// Destroy implements rest.Storage.
func (*portForwardREST) Destroy() {}

// ConnectMethods implements rest.Connecter.
func (*portForwardREST) ConnectMethods() []string { return connecter{}.ConnectMethods() }

// NewConnectOptions implements rest.Connecter.
func (*portForwardREST) NewConnectOptions() (runtime.Object, bool, string) {
	return &corev1.PodPortForwardOptions{}, false, ""
}

// Connect implements rest.Connecter.
func (p *portForwardREST) Connect(ctx context.Context, name string, _ runtime.Object, r rest.Responder) (http.Handler, error) {
	pod, err := p.pod(ctx, name)
	if err != nil {
		return nil, err
	}
	location, err := p.locate(ctx, pod, "portForward", "", nil)
	if err != nil {
		return nil, err
	}
	plain := proxy.NewUpgradeAwareHandler(location, p.server.workerTransport, false, true, responder{r})
	return utilproxy.NewTranslatingHandler(plain, utilproxy.NewTunnelingHandler(plain), wsstream.IsWebSocketRequestWithTunnelingProtocol), nil
}

// splitTarget reads "[scheme:]name[:port]" of a proxy request.
func splitTarget(id string) (scheme, name, port string, err error) {
	scheme, name, port, ok := utilnet.SplitSchemeNamePort(id)
	if !ok {
		return "", "", "", apierrors.NewBadRequest(fmt.Sprintf("invalid proxy target %q, use [scheme:]name[:port]", id))
	}
	return scheme, name, port, nil
}
