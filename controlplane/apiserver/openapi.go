package apiserver

import (
	"io"
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

// installNoDefinitions says that there are no CustomResourceDefinitions. It is not part of
// discovery, for none can be made; but kubectl lists them before it creates what it finds no
// PATCH of in the OpenAPI document, such as a SubjectAccessReview, and gives up if it cannot
// (k8s.io/cli-runtime/pkg/resource, QueryParamVerifier).
func (s *Server) installNoDefinitions() {
	s.generic.Handler.NonGoRestfulMux.HandleFunc("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"kind":"CustomResourceDefinitionList","apiVersion":"apiextensions.k8s.io/v1","metadata":{},"items":[]}`+"\n")
	})
}
