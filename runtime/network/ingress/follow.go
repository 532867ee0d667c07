package ingress

import (
	"context"
	"errors"
	"log/slog"
	"time"

	networkingv1 "k8s.io/api/networking/v1"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
	gatewayinformers "sigs.k8s.io/gateway-api/pkg/client/informers/externalversions"
)

// settle is how long changes are collected before a table is made of them.
const settle = 5 * time.Millisecond

// byService is the index of EndpointSlices by namespace/service.
const byService = "ingress-service"

// Follower makes a new table whenever what it is made of has changed.
type Follower struct {
	f        informers.SharedInformerFactory
	g        gatewayinformers.SharedInformerFactory
	secrets  *secrets
	changed  chan struct{}
	synced   []cache.InformerSynced
	slices   cache.Indexer
	services cache.Indexer
}

// NewFollower registers with the factory, which the caller starts. client reads the
// Secrets that Ingresses and Gateways name, one by one, and gateways their kinds.
func NewFollower(client kubernetes.Interface, gateways gatewayclient.Interface, f informers.SharedInformerFactory) (*Follower, error) {
	w := &Follower{f: f, g: gatewayinformers.NewSharedInformerFactory(gateways, 0), changed: make(chan struct{}, 1)}
	w.secrets = newSecrets(client, w.poke)
	slices := f.Discovery().V1().EndpointSlices().Informer()
	if err := slices.AddIndexers(cache.Indexers{byService: func(obj any) ([]string, error) {
		s, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok || s.AddressType == discoveryv1.AddressTypeFQDN {
			return nil, nil
		}
		return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
	}}); err != nil {
		return nil, err
	}
	services := f.Core().V1().Services().Informer()
	w.slices, w.services = slices.GetIndexer(), services.GetIndexer()
	g := w.g.Gateway().V1()
	for _, inf := range []cache.SharedIndexInformer{
		slices, services, f.Core().V1().Namespaces().Informer(), f.Networking().V1().Ingresses().Informer(), f.Networking().V1().IngressClasses().Informer(),
		g.GatewayClasses().Informer(), g.Gateways().Informer(), g.HTTPRoutes().Informer(), g.GRPCRoutes().Informer(), g.ReferenceGrants().Informer(),
	} {
		if _, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { w.poke() }, UpdateFunc: func(any, any) { w.poke() }, DeleteFunc: func(any) { w.poke() },
		}); err != nil {
			return nil, err
		}
		w.synced = append(w.synced, inf.HasSynced)
	}
	return w, nil
}

func (w *Follower) poke() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Run calls apply with the first table and with each new one until ctx ends.
func (w *Follower) Run(ctx context.Context, apply func(*Table)) error {
	defer w.secrets.stop()
	w.g.StartWithContext(ctx)
	defer w.g.Shutdown()
	if !cache.WaitForCacheSync(ctx.Done(), w.synced...) {
		return nil
	}
	for {
		t, err := w.table(ctx)
		if err != nil {
			return err
		}
		if t != nil {
			apply(t)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-w.changed:
		}
		pause := time.NewTimer(settle)
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-pause.C:
		}
		select { // what has changed meanwhile is in the next table
		case <-w.changed:
		default:
		}
	}
}

// table makes the table of now; nil while a Secret that it needs has not been read.
func (w *Follower) table(ctx context.Context) (*Table, error) {
	ingresses, err := w.f.Networking().V1().Ingresses().Lister().List(labels.Everything())
	if err != nil {
		return nil, err
	}
	classes, err := w.f.Networking().V1().IngressClasses().Lister().List(labels.Everything())
	if err != nil {
		return nil, err
	}
	gateways, err := w.gateways()
	if err != nil {
		return nil, err
	}
	secrets := named(Ours(classes, ingresses))
	certificateSecrets(secrets, OurGateways(gateways.Classes, gateways.Gateways), gateways.Grants)
	if !w.secrets.want(ctx, secrets) {
		return nil, nil
	}
	t := Compile(Snapshot{Classes: classes, Ingresses: ingresses, Gateways: *gateways, Certificate: w.secrets.certificate})
	slog.Debug("ingress table", "ingresses", len(t.ingresses), "hosts", len(t.hosts), "problems", len(t.Problems))
	return t, nil
}

// gateways is what the Gateways' part of a table is made of.
func (w *Follower) gateways() (*GatewaySnapshot, error) {
	s := &GatewaySnapshot{Service: w.Service, Labels: func(namespace string) labels.Set {
		ns, err := w.f.Core().V1().Namespaces().Lister().Get(namespace)
		if err != nil {
			return nil // it is gone, or not known yet
		}
		return ns.Labels
	}}
	g, all := w.g.Gateway().V1(), labels.Everything()
	var errs [5]error
	s.Classes, errs[0] = g.GatewayClasses().Lister().List(all)
	s.Gateways, errs[1] = g.Gateways().Lister().List(all)
	s.HTTPRoutes, errs[2] = g.HTTPRoutes().Lister().List(all)
	s.GRPCRoutes, errs[3] = g.GRPCRoutes().Lister().List(all)
	s.Grants, errs[4] = g.ReferenceGrants().Lister().List(all)
	return s, errors.Join(errs[:]...)
}

// named are the Secrets that Ingresses name.
func named(ingresses []*networkingv1.Ingress) map[secretKey]bool {
	out := map[secretKey]bool{}
	for _, i := range ingresses {
		for _, t := range i.Spec.TLS {
			if t.SecretName != "" {
				out[secretKey{i.Namespace, t.SecretName}] = true
			}
		}
	}
	return out
}

// Service returns a service, nil if there is none.
func (w *Follower) Service(namespace, name string) *corev1.Service {
	obj, ok, err := w.services.GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	return obj.(*corev1.Service)
}

// Slices returns the EndpointSlices of a service.
func (w *Follower) Slices(namespace, service string) []*discoveryv1.EndpointSlice {
	objs, err := w.slices.ByIndex(byService, namespace+"/"+service)
	if err != nil {
		return nil
	}
	out := make([]*discoveryv1.EndpointSlice, 0, len(objs))
	for _, o := range objs {
		out = append(out, o.(*discoveryv1.EndpointSlice))
	}
	return out
}
