package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
)

func TestHandler(t *testing.T) {
	file := filepath.Join(t.TempDir(), "greeting")
	if err := os.WriteFile(file, []byte("Welcome\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	base := map[string]string{"VERSION": "v1", "MESSAGE": "open", "POD_NAME": "web-1", "NODE_NAME": "worker-1"}
	never := map[string]string{"VERSION": "v3", "READY": "never"}
	for name, c := range map[string]struct {
		env    map[string]string
		path   string
		status int
		body   string
	}{
		"page":      {base, "/", http.StatusOK, "shop v1: Welcome (open)\nanswered by web-1 on worker-1\n"},
		"alive":     {never, "/healthz", http.StatusOK, "ok\n"},
		"ready":     {base, "/readyz", http.StatusOK, "ok\n"},
		"not ready": {never, "/readyz", http.StatusServiceUnavailable, "not ready: waiting for a database that does not exist\n"},
		"elsewhere": {base, "/nothing", http.StatusNotFound, "404 page not found\n"},
	} {
		t.Run(name, func(t *testing.T) {
			w := httptest.NewRecorder()
			handler(func(k string) string { return c.env[k] }, file).ServeHTTP(w, httptest.NewRequest("GET", c.path, nil))
			if w.Code != c.status || w.Body.String() != c.body {
				t.Errorf("%s: %d %q, want %d %q", c.path, w.Code, w.Body, c.status, c.body)
			}
		})
	}
}
