package apiserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
)

// The group metrics.k8s.io ("Resource metrics pipeline") is answered by asking the
// workers when somebody asks: they know what their containers use, and nothing is
// collected while nobody wants to know.

const (
	// metricsLimit bounds how long one worker may take to answer; one that does not
	// is left out.
	metricsLimit = 5 * time.Second
	// metricsSize bounds an answer, and workersAtOnce how many are asked together.
	metricsSize   = 16 << 20
	workersAtOnce = 32
)

// usage is the answer of a worker.
type usage struct {
	Node *metricsv1beta1.NodeMetrics `json:"node"`
	Pods []metricsv1beta1.PodMetrics `json:"pods"`
}

// metrics are the storages of metrics.k8s.io.
func (s *Server) metrics() map[string]rest.Storage {
	return map[string]rest.Storage{"nodes": &nodeMetricsREST{s}, "pods": &podMetricsREST{s}}
}

// usageOf asks workers, several at a time. Those that do not answer are left out.
func (s *Server) usageOf(ctx context.Context, nodes sets.Set[string]) map[string]usage {
	out := map[string]usage{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, workersAtOnce)
	for node := range nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			u, err := s.usageOn(ctx, node)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[node] = u
		})
	}
	wg.Wait()
	return out
}

func (s *Server) usageOn(ctx context.Context, node string) (u usage, err error) {
	host, err := s.nodeAddress(ctx, node)
	if err != nil {
		return u, err
	}
	ctx, cancel := context.WithTimeout(ctx, metricsLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/usage", nil)
	if err != nil {
		return u, err
	}
	resp, err := s.workerTransport.RoundTrip(req)
	if err != nil {
		return u, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return u, fmt.Errorf("worker %s: %s", node, resp.Status)
	}
	return u, json.NewDecoder(io.LimitReader(resp.Body, metricsSize)).Decode(&u)
}

// nodeMetricsREST is nodes of metrics.k8s.io.
type nodeMetricsREST struct{ server *Server }

// podMetricsREST is pods of metrics.k8s.io.
type podMetricsREST struct{ server *Server }

var (
	_ rest.KindProvider         = &nodeMetricsREST{}
	_ rest.Lister               = &nodeMetricsREST{}
	_ rest.Getter               = &nodeMetricsREST{}
	_ rest.Scoper               = &nodeMetricsREST{}
	_ rest.SingularNameProvider = &nodeMetricsREST{}
	_ rest.KindProvider         = &podMetricsREST{}
	_ rest.Lister               = &podMetricsREST{}
	_ rest.Getter               = &podMetricsREST{}
	_ rest.Scoper               = &podMetricsREST{}
	_ rest.SingularNameProvider = &podMetricsREST{}
)

// New implements rest.Storage.
func (*nodeMetricsREST) New() runtime.Object { return &metricsv1beta1.NodeMetrics{} }

// NewList implements rest.Lister.
func (*nodeMetricsREST) NewList() runtime.Object { return &metricsv1beta1.NodeMetricsList{} }

// Destroy implements rest.Storage.
func (*nodeMetricsREST) Destroy() {}

// Kind implements rest.KindProvider.
func (*nodeMetricsREST) Kind() string { return "NodeMetrics" }

// NamespaceScoped implements rest.Scoper.
func (*nodeMetricsREST) NamespaceScoped() bool { return false }

// GetSingularName implements rest.SingularNameProvider.
func (*nodeMetricsREST) GetSingularName() string { return "" }

// ConvertToTable implements rest.TableConvertor.
func (m *nodeMetricsREST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return printers.NewConvertor(metricsv1beta1.Resource("nodes"), printers.NodeMetrics, m.server.now).ConvertToTable(ctx, obj, options)
}

// List implements rest.Lister.
func (m *nodeMetricsREST) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	list, err := m.server.stores[corev1.Resource("nodes")].List(ctx, selection(options))
	if err != nil {
		return nil, err
	}
	return m.of(ctx, list.(*corev1.NodeList).Items), nil
}

// Get implements rest.Getter.
func (m *nodeMetricsREST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	obj, err := m.server.stores[corev1.Resource("nodes")].Get(ctx, name, options)
	if err != nil {
		return nil, err
	}
	if list := m.of(ctx, []corev1.Node{*obj.(*corev1.Node)}); len(list.Items) == 1 {
		return &list.Items[0], nil
	}
	return nil, apierrors.NewNotFound(metricsv1beta1.Resource("nodes"), name)
}

func (m *nodeMetricsREST) of(ctx context.Context, nodes []corev1.Node) *metricsv1beta1.NodeMetricsList {
	names := sets.New[string]()
	for i := range nodes {
		names.Insert(nodes[i].Name)
	}
	all := m.server.usageOf(ctx, names)
	out := &metricsv1beta1.NodeMetricsList{Items: []metricsv1beta1.NodeMetrics{}}
	for i := range nodes {
		if u := all[nodes[i].Name].Node; u != nil {
			u.ObjectMeta = metricsMeta(&nodes[i])
			out.Items = append(out.Items, *u)
		}
	}
	return out
}

// New implements rest.Storage.
func (*podMetricsREST) New() runtime.Object { return &metricsv1beta1.PodMetrics{} }

// NewList implements rest.Lister.
func (*podMetricsREST) NewList() runtime.Object { return &metricsv1beta1.PodMetricsList{} }

// Destroy implements rest.Storage.
func (*podMetricsREST) Destroy() {}

// Kind implements rest.KindProvider.
func (*podMetricsREST) Kind() string { return "PodMetrics" }

// NamespaceScoped implements rest.Scoper.
func (*podMetricsREST) NamespaceScoped() bool { return true }

// GetSingularName implements rest.SingularNameProvider.
func (*podMetricsREST) GetSingularName() string { return "" }

// ConvertToTable implements rest.TableConvertor.
func (m *podMetricsREST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return printers.NewConvertor(metricsv1beta1.Resource("pods"), printers.PodMetrics, m.server.now).ConvertToTable(ctx, obj, options)
}

// List implements rest.Lister.
func (m *podMetricsREST) List(ctx context.Context, options *metainternalversion.ListOptions) (runtime.Object, error) {
	list, err := m.server.stores[corev1.Resource("pods")].List(ctx, selection(options))
	if err != nil {
		return nil, err
	}
	return m.of(ctx, list.(*corev1.PodList).Items), nil
}

// Get implements rest.Getter.
func (m *podMetricsREST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	obj, err := m.server.stores[corev1.Resource("pods")].Get(ctx, name, options)
	if err != nil {
		return nil, err
	}
	if list := m.of(ctx, []corev1.Pod{*obj.(*corev1.Pod)}); len(list.Items) == 1 {
		return &list.Items[0], nil
	}
	return nil, apierrors.NewNotFound(metricsv1beta1.Resource("pods"), request.NamespaceValue(ctx)+"/"+name)
}

// of is what running pods use, as far as it is known.
func (m *podMetricsREST) of(ctx context.Context, pods []corev1.Pod) *metricsv1beta1.PodMetricsList {
	nodes, known := sets.New[string](), map[string]*corev1.Pod{}
	for i := range pods {
		if p := &pods[i]; p.Spec.NodeName != "" && p.Status.Phase == corev1.PodRunning {
			nodes.Insert(p.Spec.NodeName)
			known[string(p.UID)] = p
		}
	}
	out := &metricsv1beta1.PodMetricsList{Items: []metricsv1beta1.PodMetrics{}}
	for _, u := range m.server.usageOf(ctx, nodes) {
		for _, used := range u.Pods {
			if p := known[string(used.UID)]; p != nil && len(used.Containers) > 0 {
				used.ObjectMeta = metricsMeta(p)
				out.Items = append(out.Items, used)
			}
		}
	}
	slices.SortFunc(out.Items, func(a, b metricsv1beta1.PodMetrics) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	return out
}

// metricsMeta is the metadata of what an object uses: its name and labels.
func metricsMeta(obj metav1.Object) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: obj.GetName(), Namespace: obj.GetNamespace(), Labels: obj.GetLabels(), CreationTimestamp: metav1.Now()}
}

// selection keeps of a list's options what chooses objects.
func selection(o *metainternalversion.ListOptions) *metainternalversion.ListOptions {
	out := &metainternalversion.ListOptions{LabelSelector: labels.Everything(), FieldSelector: fields.Everything()}
	if o != nil && o.LabelSelector != nil {
		out.LabelSelector = o.LabelSelector
	}
	if o != nil && o.FieldSelector != nil {
		out.FieldSelector = o.FieldSelector
	}
	return out
}
