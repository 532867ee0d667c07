package apiserver

import (
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/cacher"
	"k8s.io/apiserver/pkg/storage/etcd3"
	"k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	"k8s.io/apiserver/pkg/storage/storagebackend/factory"
	"k8s.io/apiserver/pkg/storage/value/encrypt/identity"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/clock"
)

const (
	storagePrefix      = "/registry"
	compactionInterval = 5 * time.Minute
)

// restOptions opens the storage of each resource on one etcd client. The
// library's own factory can only dial sockets; this one takes a client that may
// be in-process.
type restOptions struct {
	clock     clock.WithTicker
	client    *kubernetes.Client
	compactor etcd3.Compactor
	types     *types
}

// inProcess keeps an in-process client from being asked for its endpoints, of
// which it has none: every etcd this binary embeds supports watch progress.
type inProcess struct{ feature.FeatureSupportChecker }

// Supports answers for the embedded etcd.
func (c inProcess) Supports(f storage.Feature) bool {
	return f == storage.RequestWatchProgress || c.FeatureSupportChecker.Supports(f)
}

var allowInProcess sync.Once

func newRESTOptions(client *clientv3.Client, t *types) (*restOptions, func()) {
	if len(client.Endpoints()) == 0 {
		allowInProcess.Do(func() {
			feature.DefaultFeatureSupportChecker = inProcess{feature.DefaultFeatureSupportChecker}
		})
	}
	kc := &kubernetes.Client{Client: client}
	kc.Kubernetes = kc
	compactor := etcd3.NewCompactor(client, compactionInterval, clock.RealClock{}, nil)
	o := &restOptions{client: kc, compactor: compactor, types: t, clock: clock.RealClock{}}
	if len(client.Endpoints()) == 0 {
		o.clock = freshClock{}
	}
	return o, compactor.Stop
}

// GetRESTOptions implements generic.RESTOptionsGetter.
func (o *restOptions) GetRESTOptions(gr schema.GroupResource, _ runtime.Object) (generic.RESTOptions, error) {
	gv := o.types.scheme.PrioritizedVersionsForGroup(gr.Group)[0]
	config := storagebackend.Config{
		Prefix:             storagePrefix,
		Codec:              o.codec(gv),
		EncodeVersioner:    gv,
		LeaseManagerConfig: etcd3.NewDefaultLeaseManagerConfig(),
		// The watch cache refuses less than what it serves from memory.
		EventsHistoryWindow: storagebackend.DefaultEventsHistoryWindow,
	}
	prefix := gr.Resource
	if gr.Group != "" {
		prefix = gr.Group + "/" + gr.Resource
	}
	return generic.RESTOptions{
		StorageConfig:           config.ForResource(gr),
		Decorator:               o.open,
		EnableGarbageCollection: true,
		DeleteCollectionWorkers: 4,
		ResourcePrefix:          prefix,
	}, nil
}

// codec stores kinds as protobuf, and those that have no protobuf form as JSON.
func (o *restOptions) codec(gv schema.GroupVersion) runtime.Codec {
	var encoder runtime.Encoder = protobuf.NewSerializer(o.types.scheme, o.types.scheme)
	if !hasProtobuf(gv.Group) {
		encoder = json.NewSerializerWithOptions(json.DefaultMetaFactory, o.types.scheme, o.types.scheme, json.SerializerOptions{})
	}
	hub := schema.GroupVersion{Group: gv.Group, Version: runtime.APIVersionInternal}
	return o.types.codecs.CodecForVersions(encoder, o.types.codecs.UniversalDeserializer(), gv, hub)
}

// open is a generic.StorageDecorator: etcd with a watch cache before it.
func (o *restOptions) open(
	config *storagebackend.ConfigForResource,
	resourcePrefix string,
	keyFunc func(obj runtime.Object) (string, error),
	newFunc, newListFunc func() runtime.Object,
	attrs storage.AttrFunc,
	trigger storage.IndexerFuncs,
	indexers *cache.Indexers,
) (storage.Interface, factory.DestroyFunc, error) {
	versioner := storage.APIObjectVersioner{}
	store, err := etcd3.New(o.client, o.compactor, config.Codec, newFunc, newListFunc, config.Prefix, resourcePrefix,
		config.GroupResource, identity.NewEncryptCheckTransformer(), config.LeaseManagerConfig,
		etcd3.NewDefaultDecoder(config.Codec, versioner), versioner)
	if err != nil {
		return nil, nil, err
	}
	cached, err := cacher.NewCacherFromConfig(cacher.Config{
		Storage:             store,
		Versioner:           versioner,
		GroupResource:       config.GroupResource,
		EventsHistoryWindow: config.EventsHistoryWindow,
		ResourcePrefix:      resourcePrefix,
		KeyFunc:             keyFunc,
		NewFunc:             newFunc,
		NewListFunc:         newListFunc,
		GetAttrsFunc:        attrs,
		IndexerFuncs:        trigger,
		Indexers:            indexers,
		Codec:               config.Codec,
		Clock:               o.clock,
	})
	if err != nil {
		store.Close()
		return nil, nil, err
	}
	delegator := cacher.NewCacheDelegator(cached, store)
	var once sync.Once
	return delegator, func() {
		once.Do(func() {
			delegator.Stop()
			cached.Stop()
			store.Close()
		})
	}, nil
}
