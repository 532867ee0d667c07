package apiserver

import (
	"net/http"
	"sync"
	"time"

	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/apiserver/pkg/server/mux"
	"k8s.io/apiserver/pkg/server/routes"
)

// openAPIKept is how long an OpenAPI document is kept that nobody asks for.
const openAPIKept = 5 * time.Minute

// openAPIDocument serves a version of the API's OpenAPI document, which is made when it
// is asked for and let go when nobody has asked for a while. Made at the start and kept,
// as the generic server does it, the two of them are a fifth of the memory of a cluster
// at rest, and what asks is a person's kubectl, for version 3 alone.
type openAPIDocument struct {
	make func(*mux.PathRecorderMux)

	mu      sync.Mutex
	made    http.Handler
	letItGo *time.Timer
}

// ServeHTTP implements http.Handler. Who comes while the document is made waits for it.
func (d *openAPIDocument) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.handler().ServeHTTP(w, r)
}

func (d *openAPIDocument) handler() http.Handler {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.made == nil {
		m := mux.NewPathRecorderMux("openapi")
		d.make(m)
		d.made, d.letItGo = m, time.AfterFunc(openAPIKept, d.drop)
	}
	d.letItGo.Reset(openAPIKept)
	return d.made
}

// drop lets the document go; requests that have it go on.
func (d *openAPIDocument) drop() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.made = nil
}

// installOpenAPI serves the documents where Kubernetes does (page "The Kubernetes API",
// "OpenAPI interface definition").
func (s *Server) installOpenAPI(config *genericapiserver.Config) {
	container := s.generic.Handler.GoRestfulContainer
	serve := s.generic.Handler.NonGoRestfulMux
	serve.Handle("/openapi/v2", &openAPIDocument{make: func(m *mux.PathRecorderMux) {
		routes.OpenAPI{Config: config.OpenAPIConfig}.InstallV2(container, m)
	}})
	v3 := &openAPIDocument{make: func(m *mux.PathRecorderMux) {
		routes.OpenAPI{V3Config: config.OpenAPIV3Config}.InstallV3(container, m)
	}}
	serve.Handle("/openapi/v3", v3)
	serve.HandlePrefix("/openapi/v3/", v3)
}
