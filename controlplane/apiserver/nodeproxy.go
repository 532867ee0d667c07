package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"path"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/registry/rest"
)

func nodeSubresources(s *Server, _ *store) map[string]rest.Storage {
	return map[string]rest.Storage{"proxy": &nodeProxyREST{s}}
}

// nodeProxyREST is nodes/proxy: questions to a node's worker, such as
// `kubectl get --raw /api/v1/nodes/NAME/proxy/metrics`. Other ports of nodes are not
// reached this way, though Kubernetes has it so; and what changes something has
// subresources of its own.
type nodeProxyREST struct{ server *Server }

var _ rest.Connecter = &nodeProxyREST{}

// New implements rest.Storage.
func (*nodeProxyREST) New() runtime.Object { return &corev1.Node{} }

// Destroy implements rest.Storage.
func (*nodeProxyREST) Destroy() {}

// ConnectMethods implements rest.Connecter.
func (*nodeProxyREST) ConnectMethods() []string { return []string{http.MethodGet, http.MethodHead} }

// NewConnectOptions implements rest.Connecter.
func (*nodeProxyREST) NewConnectOptions() (runtime.Object, bool, string) {
	return &corev1.NodeProxyOptions{}, true, "path"
}

// Connect implements rest.Connecter.
func (n *nodeProxyREST) Connect(ctx context.Context, id string, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.NodeProxyOptions)
	if !ok {
		return nil, fmt.Errorf("apiserver: invalid proxy options %T", options)
	}
	_, name, port, err := splitTarget(id)
	if err != nil {
		return nil, err
	}
	host, err := n.server.nodeAddress(ctx, name)
	if err != nil {
		return nil, err
	}
	location := &url.URL{Scheme: "https", Host: host, Path: path.Join("/", o.Path)}
	if port != "" && port != location.Port() {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("only the worker's own port of node %s is reached, which is %s", name, location.Port()))
	}
	return proxy.NewUpgradeAwareHandler(location, n.server.workerTransport, false, false, responder{r}), nil
}
