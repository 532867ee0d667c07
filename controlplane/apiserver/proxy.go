package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/proxy"
	"k8s.io/apiserver/pkg/registry/rest"
)

var proxyMethods = []string{
	http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete,
	http.MethodPatch, http.MethodHead, http.MethodOptions,
}

// podProxyREST is pods/proxy: HTTP to a port of a pod.
type podProxyREST struct{ *workers }

// serviceProxyREST is services/proxy: HTTP to a ready endpoint of a service.
type serviceProxyREST struct {
	server   *Server
	services *store
}

var (
	_ rest.Connecter = &podProxyREST{}
	_ rest.Connecter = &serviceProxyREST{}
)

// New implements rest.Storage.
func (*podProxyREST) New() runtime.Object { return &corev1.Pod{} }

// Destroy implements rest.Storage.
func (*podProxyREST) Destroy() {}

// ConnectMethods implements rest.Connecter.
func (*podProxyREST) ConnectMethods() []string { return proxyMethods }

// NewConnectOptions implements rest.Connecter.
func (*podProxyREST) NewConnectOptions() (runtime.Object, bool, string) {
	return &corev1.PodProxyOptions{}, true, "path"
}

// Connect implements rest.Connecter.
func (p *podProxyREST) Connect(ctx context.Context, id string, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.PodProxyOptions)
	if !ok {
		return nil, fmt.Errorf("apiserver: invalid proxy options %T", options)
	}
	scheme, name, port, err := splitTarget(id)
	if err != nil {
		return nil, err
	}
	pod, err := p.pod(ctx, name)
	if err != nil {
		return nil, err
	}
	if pod.Status.PodIP == "" {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("pod %s has no address yet", name))
	}
	number, err := podPort(pod, port)
	if err != nil {
		return nil, err
	}
	return p.server.proxyTo(scheme, pod.Status.PodIP, number, o.Path, r), nil
}

// podPort reads a port's number or name; without either it is the first one.
func podPort(pod *corev1.Pod, port string) (int32, error) {
	if n, err := strconv.ParseUint(port, 10, 16); err == nil {
		return int32(n), nil
	}
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if port == "" || p.Name == port {
				return p.ContainerPort, nil
			}
		}
	}
	if port == "" {
		return 80, nil
	}
	return 0, apierrors.NewBadRequest(fmt.Sprintf("pod %s has no port named %q", pod.Name, port))
}

// New implements rest.Storage.
func (*serviceProxyREST) New() runtime.Object { return &corev1.Service{} }

// Destroy implements rest.Storage.
func (*serviceProxyREST) Destroy() {}

// ConnectMethods implements rest.Connecter.
func (*serviceProxyREST) ConnectMethods() []string { return proxyMethods }

// NewConnectOptions implements rest.Connecter.
func (*serviceProxyREST) NewConnectOptions() (runtime.Object, bool, string) {
	return &corev1.ServiceProxyOptions{}, true, "path"
}

// Connect implements rest.Connecter.
func (p *serviceProxyREST) Connect(ctx context.Context, id string, options runtime.Object, r rest.Responder) (http.Handler, error) {
	o, ok := options.(*corev1.ServiceProxyOptions)
	if !ok {
		return nil, fmt.Errorf("apiserver: invalid proxy options %T", options)
	}
	scheme, name, port, err := splitTarget(id)
	if err != nil {
		return nil, err
	}
	obj, err := p.services.Get(ctx, name, &metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	portName, err := servicePort(obj.(*corev1.Service), port)
	if err != nil {
		return nil, err
	}
	slices, err := p.slices(ctx, name)
	if err != nil {
		return nil, err
	}
	address, number, ok := readyEndpoint(slices, portName)
	if !ok {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", name))
	}
	return p.server.proxyTo(scheme, address, number, o.Path, r), nil
}

func (p *serviceProxyREST) slices(ctx context.Context, service string) ([]discoveryv1.EndpointSlice, error) {
	list, err := p.server.stores[discoveryv1.Resource("endpointslices")].List(ctx, &metainternalversion.ListOptions{
		LabelSelector: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service}),
	})
	if err != nil {
		return nil, err
	}
	return list.(*discoveryv1.EndpointSliceList).Items, nil
}

// servicePort returns the name of the port asked for by number or name.
func servicePort(svc *corev1.Service, port string) (string, error) {
	if port == "" && len(svc.Spec.Ports) == 1 {
		return svc.Spec.Ports[0].Name, nil
	}
	for _, p := range svc.Spec.Ports {
		if p.Name == port || strconv.Itoa(int(p.Port)) == port {
			return p.Name, nil
		}
	}
	return "", apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %q found for service %q", port, svc.Name))
}

// readyEndpoint finds the first ready address of a port.
func readyEndpoint(slices []discoveryv1.EndpointSlice, port string) (string, int32, bool) {
	for _, s := range slices {
		for _, p := range s.Ports {
			if p.Port == nil || (p.Name != nil && *p.Name != port) || (p.Name == nil && port != "") {
				continue
			}
			for _, e := range s.Endpoints {
				if len(e.Addresses) > 0 && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
					return e.Addresses[0], *p.Port, true
				}
			}
		}
	}
	return "", 0, false
}

// proxyTo forwards the request to an address of the pod network.
func (s *Server) proxyTo(scheme, host string, port int32, subpath string, r rest.Responder) http.Handler {
	if scheme == "" {
		scheme = "http"
	}
	location := &url.URL{Scheme: scheme, Host: net.JoinHostPort(host, strconv.Itoa(int(port))), Path: path.Join("/", subpath)}
	if strings.HasSuffix(subpath, "/") && location.Path != "/" {
		location.Path += "/"
	}
	handler := proxy.NewUpgradeAwareHandler(location, s.directTransport, true, false, responder{r})
	handler.RejectForwardingRedirects = true
	return handler
}
