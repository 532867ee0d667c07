// Testserver is what the pods of the benchmark run: a web server that answers
// everything on $PORT, 8080 by default, and ends at once when it is told to, so that
// starts and stops measure the cluster and not the program. With $LINGER it serves for
// so long, and then answers what it has been asked before it ends.
package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	srv := &http.Server{Addr: ":" + port, Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	end := srv.Close
	if linger, err := time.ParseDuration(os.Getenv("LINGER")); err == nil {
		end = func() error {
			time.Sleep(linger)
			return srv.Shutdown(context.Background())
		}
	}
	ended := make(chan struct{})
	context.AfterFunc(ctx, func() { _ = end(); close(ended) })
	if err := srv.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		slog.Error("cannot serve", "error", err)
		os.Exit(1)
	}
	<-ended
}
