package apiserver

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apiserver/pkg/server/mux"
)

// TestOpenAPIDocument asks for a document now and then: it is made once for all who
// want it at a time, and once more when it has been let go.
func TestOpenAPIDocument(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		made := 0
		d := &openAPIDocument{make: func(m *mux.PathRecorderMux) {
			made++
			text := fmt.Sprint("document ", made)
			m.HandleFunc("/openapi/v2", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, text) })
		}}
		ask := func(want string) {
			t.Helper()
			w := httptest.NewRecorder()
			d.ServeHTTP(w, httptest.NewRequest("GET", "/openapi/v2", nil))
			if got := w.Body.String(); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		}
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { ask("document 1") })
		}
		wg.Wait()
		for range 3 {
			time.Sleep(openAPIKept - time.Second)
			ask("document 1")
		}
		time.Sleep(openAPIKept + time.Second)
		if synctest.Wait(); d.made != nil {
			t.Error("it is kept though nobody asks for it")
		}
		ask("document 2")
		time.Sleep(openAPIKept + time.Second) // its timer ends with the test
	})
}
