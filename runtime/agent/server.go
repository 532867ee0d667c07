package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// apiServerUser is the only common name that the server lets in.
const apiServerUser = "system:apiserver"

// statusError is an error with the HTTP status that it becomes.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

func notFound(format string, args ...any) error {
	return &statusError{http.StatusNotFound, fmt.Sprintf(format, args...)}
}

func badRequest(format string, args ...any) error {
	return &statusError{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// handler answers a request or returns the error that one place writes.
type handler func(w http.ResponseWriter, r *http.Request) error

// serve runs the HTTPS server, with the paths of Kubernetes' kubelet, until ctx
// ends.
func (a *Agent) serve(ctx context.Context) error {
	srv := &http.Server{
		Handler:           a.routes(),
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          log.New(quietLog{a.log}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		TLSConfig: &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return a.cfg.ServingCert(), nil },
			ClientAuth:     tls.RequireAndVerifyClientCert,
			ClientCAs:      a.cfg.ClientCA,
			// SPDY upgrades need HTTP/1.1.
			NextProtos: []string{"http/1.1"},
		},
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	err := srv.ServeTLS(a.cfg.Listener, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("agent: HTTPS server: %w", err)
}

// quietLog takes what net/http has to say about single connections.
type quietLog struct{ log *slog.Logger }

func (q quietLog) Write(p []byte) (int, error) {
	q.log.Debug("HTTPS server", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}

func (a *Agent) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h handler) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := h(w, r); err != nil {
				code := http.StatusInternalServerError
				var se *statusError
				if errors.As(err, &se) {
					code = se.code
				}
				http.Error(w, err.Error(), code)
			}
		})
	}
	handle("GET /healthz", func(w http.ResponseWriter, _ *http.Request) error {
		_, err := w.Write([]byte("ok"))
		return err
	})
	handle("GET /containerLogs/{namespace}/{pod}/{container}", a.serveLogs)
	handle("/exec/{namespace}/{pod}/{container}", a.serveExec)
	handle("/attach/{namespace}/{pod}/{container}", a.serveAttach)
	handle("/portForward/{namespace}/{pod}", a.servePortForward)
	handle("GET /pods", a.servePods)
	handle("GET /stats/summary", a.serveStats)
	handle("GET /usage", a.serveUsage)
	handle("GET /metrics", a.serveMetrics)
	handle("GET /network", a.serveNetwork)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
			http.Error(w, "a client certificate is required", http.StatusUnauthorized)
			return
		}
		if cn := r.TLS.PeerCertificates[0].Subject.CommonName; cn != apiServerUser {
			http.Error(w, fmt.Sprintf("%q may not use this server; only %s may", cn, apiServerUser), http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// target finds the pod of a request, and its container if the path names one.
func (a *Agent) target(r *http.Request) (*worker, *podView, error) {
	ns, name := r.PathValue("namespace"), r.PathValue("pod")
	w := a.workerByName(ns, name)
	if w == nil {
		return nil, nil, notFound("pod %q not found in namespace %q on this node", name, ns)
	}
	v := w.view.Load()
	if v == nil {
		return nil, nil, badRequest("pod %q is being set up", name)
	}
	if c := r.PathValue("container"); c != "" {
		if v.container(c) == nil {
			return nil, nil, notFound("container %q not found in pod %q", c, name)
		}
	}
	return w, v, nil
}

// runningContainer is the present run of the container of a request.
func (a *Agent) runningContainer(r *http.Request) (*worker, instance, error) {
	w, v, err := a.target(r)
	if err != nil {
		return nil, instance{}, err
	}
	name := r.PathValue("container")
	in, ok := v.cur[name]
	if !ok || !in.Running {
		return nil, in, badRequest("container %q of pod %q is not running", name, w.name)
	}
	return w, in, nil
}

func (a *Agent) serveLogs(rw http.ResponseWriter, r *http.Request) error {
	opts, err := parseLogOptions(r.URL.Query(), a.cfg.Now())
	if err != nil {
		return &statusError{http.StatusBadRequest, err.Error()}
	}
	w, v, err := a.target(r)
	if err != nil {
		return err
	}
	name := r.PathValue("container")
	in, ok := v.cur[name]
	if opts.previous {
		if in, ok = v.prev[name]; !ok {
			return badRequest("previous terminated container %q in pod %q not found", name, w.name)
		}
	}
	if !ok {
		return badRequest("container %q in pod %q is waiting to start: %s", name, w.name, waitingText(v, name))
	}
	rw.Header().Set("Content-Type", "text/plain")
	rw.WriteHeader(http.StatusOK)
	rc := http.NewResponseController(rw)
	flush := func() { rc.Flush() }
	if opts.follow {
		flush()
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	err = readLog(ctx, a.logPath(v.pod, name, in.Attempt), opts, rw, flush, w.endOf(ctx, name, in.ID))
	if err != nil && ctx.Err() == nil {
		a.log.Warn("serve log", "pod", w.namespace+"/"+w.name, "container", name, "error", err)
		// The status is sent: only cutting the connection tells the client.
		panic(http.ErrAbortHandler)
	}
	return nil
}

func waitingText(v *podView, name string) string {
	for _, list := range [][]v1.ContainerStatus{v.status.InitContainerStatuses, v.status.ContainerStatuses, v.status.EphemeralContainerStatuses} {
		for _, cs := range list {
			if cs.Name == name && cs.State.Waiting != nil {
				return cs.State.Waiting.Reason
			}
		}
	}
	return reasonCreating
}

// endOf returns a channel that is closed when the run id of a container has ended.
func (w *worker) endOf(ctx context.Context, name, id string) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		for {
			next := w.changed.next()
			v := w.view.Load()
			if in, ok := v.cur[name]; !ok || in.ID != id || !in.Running {
				close(ended)
				return
			}
			select {
			case <-next:
			case <-w.done:
				close(ended)
				return
			case <-ctx.Done():
				return
			}
		}
	}()
	return ended
}

func (a *Agent) servePods(rw http.ResponseWriter, _ *http.Request) error {
	list := v1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []v1.Pod{}}
	a.eachWorker(func(w *worker) {
		if v := w.view.Load(); v != nil {
			p := v.pod.DeepCopy()
			p.Status = v.status
			list.Items = append(list.Items, *p)
		}
	})
	return writeJSON(rw, list)
}

func writeJSON(rw http.ResponseWriter, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	rw.Header().Set("Content-Type", "application/json")
	_, err = rw.Write(data)
	return err
}
