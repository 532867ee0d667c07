// Demo-server is the web server in the images of the demo: one program that the
// images' configuration and the pod's environment make behave differently.
//
//	VERSION            what it calls itself; baked into the image
//	READY=never        /readyz never passes; baked into the image that is broken on purpose
//	MESSAGE            from a ConfigMap, as it was when the container started
//	/etc/shop/greeting from the same ConfigMap as a file, read anew for each request
//	POD_NAME, NODE_NAME from the Downward API
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	greetingFile = "/etc/shop/greeting"
	lameDuck     = 500 * time.Millisecond
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Getenv); err != nil {
		slog.Error("the server ended", "error", err)
		os.Exit(1)
	}
}

// run serves until ctx ends, a moment longer, and then until the requests under
// way are answered.
func run(ctx context.Context, env func(string) string) error {
	port := env("PORT")
	if port == "" {
		port = "8080"
	}
	srv := &http.Server{Addr: ":" + port, Handler: handler(env, greetingFile), ReadHeaderTimeout: 5 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- srv.ListenAndServe() }()
	slog.Info("serving", "version", env("VERSION"), "port", port, "pod", env("POD_NAME"), "node", env("NODE_NAME"))
	select {
	case err := <-ended:
		return fmt.Errorf("serve on port %s: %w", port, err)
	case <-ctx.Done():
	}
	slog.Info("stopping")
	// A pod is told to stop at the same moment as the Services are told to leave it
	// out: go on for those requests that are still sent here.
	<-time.After(lameDuck)
	// Less than a pod's shortest useful grace period; what takes longer is cut off.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 4*time.Second)
	defer cancel()
	if err := srv.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return nil
}

// handler answers for the version, environment and greeting file given.
func handler(env func(string) string, file string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if env("READY") == "never" {
			http.Error(w, "not ready: waiting for a database that does not exist", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "shop %s: %s (%s)\nanswered by %s on %s\n", env("VERSION"), greeting(file), env("MESSAGE"), env("POD_NAME"), env("NODE_NAME"))
	})
	return mux
}

func greeting(file string) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return "no greeting: " + err.Error()
	}
	return strings.TrimSpace(string(b))
}
