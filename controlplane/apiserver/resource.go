package apiserver

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/generic"
	"k8s.io/apiserver/pkg/registry/generic/registry"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/names"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
)

// resource is one row of the table of kinds: all that the generic store and
// strategy need to know of it.
type resource struct {
	gv schema.GroupVersion
	// alsoIn are further versions of the group that serve the kind.
	alsoIn         []schema.GroupVersion
	kind           string
	plural         string
	singular       string
	shortNames     []string
	categories     []string
	namespaced     bool
	newObject      func() runtime.Object
	newList        func() runtime.Object
	table          printers.Table
	name           apivalidation.ValidateNameFunc
	createOnUpdate bool

	// status: the kind has a /status endpoint. statusWritesLabels: that endpoint
	// may also write labels and annotations.
	// statusOnCreate: a create may carry the status.
	status, statusWritesLabels, statusOnCreate bool
	// generation: metadata.generation counts the changes of spec, and with
	// annotationsBumpGeneration also those of the annotations.
	generation, annotationsBumpGeneration bool
	// noGarbageCollection: objects of the kind are not owners.
	noGarbageCollection bool
	// orphans is the warning given when an object of the kind is deleted without a
	// word on its dependents, which then stay; empty if they go.
	orphans string
	// ttlSeconds after which an object vanishes; 0 means never.
	ttlSeconds uint64

	// check validates what is particular to the kind; old is nil on create.
	check func(obj, old runtime.Object) field.ErrorList
	// validateStatus validates a write to /status.
	validateStatus func(obj, old runtime.Object) field.ErrorList
	// warnings names what is accepted and not acted on.
	warnings func(obj runtime.Object) []string
	// prepareCreate, prepareUpdate and prepareStatusUpdate set what the system
	// sets, before validation.
	prepareCreate       func(ctx context.Context, obj runtime.Object)
	prepareUpdate       func(ctx context.Context, obj, old runtime.Object)
	prepareStatusUpdate func(ctx context.Context, obj, old runtime.Object)
	// graceful decides whether a delete is done in two steps, and sets the grace.
	graceful func(obj runtime.Object, options *metav1.DeleteOptions) bool
	// fields are the kind's selectable fields besides name and namespace.
	fields func(obj runtime.Object) fields.Set
	// indexed is the field whose watchers get only their own events, if any.
	indexed string
	// configure adjusts the store before it is opened.
	configure func(s *Server, store *registry.Store)
	// subresources adds storage under "<plural>/<name>".
	subresources func(s *Server, store *store) map[string]rest.Storage
}

func (r *resource) groupResource(name string) schema.GroupResource {
	return schema.GroupResource{Group: r.gv.Group, Resource: name}
}

// attrs implements storage.AttrFunc.
func (r *resource) attrs(obj runtime.Object) (labels.Set, fields.Set, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, nil, err
	}
	set := fields.Set{"metadata.name": m.GetName()}
	if r.namespaced {
		set["metadata.namespace"] = m.GetNamespace()
	}
	if r.fields != nil {
		for k, v := range r.fields(obj) {
			set[k] = v
		}
	}
	return m.GetLabels(), set, nil
}

// store is the main endpoint of a resource.
type store struct {
	*registry.Store
	r *resource
}

var (
	_ rest.ShortNamesProvider = &store{}
	_ rest.CategoriesProvider = &store{}
)

// ShortNames implements rest.ShortNamesProvider.
func (s *store) ShortNames() []string { return s.r.shortNames }

// Categories implements rest.CategoriesProvider.
func (s *store) Categories() []string { return s.r.categories }

// statusStore is the /status endpoint of a resource.
type statusStore struct{ store *registry.Store }

var (
	_ rest.Patcher             = &statusStore{}
	_ rest.ResetFieldsStrategy = &statusStore{}
)

// New implements rest.Storage.
func (s *statusStore) New() runtime.Object { return s.store.New() }

// Destroy implements rest.Storage; the main endpoint closes the storage.
func (s *statusStore) Destroy() {}

// Get implements rest.Getter.
func (s *statusStore) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	return s.store.Get(ctx, name, options)
}

// Update implements rest.Updater; a status is never created.
func (s *statusStore) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	return s.store.Update(ctx, name, info, create, update, false, options)
}

// GetResetFields implements rest.ResetFieldsStrategy.
func (s *statusStore) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	return s.store.GetResetFields()
}

// ConvertToTable implements rest.TableConvertor.
func (s *statusStore) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return s.store.ConvertToTable(ctx, obj, options)
}

// openStore opens the main endpoint of a resource.
func (s *Server) openStore(r *resource) (*store, error) {
	if r.newObject == nil || r.newList == nil || r.name == nil {
		return nil, fmt.Errorf("apiserver: the entry of %s is incomplete", r.plural)
	}
	base := strategy{ObjectTyper: s.types.scheme, NameGenerator: names.SimpleNameGenerator, r: r}
	st := &registry.Store{
		NewFunc:                   r.newObject,
		NewListFunc:               r.newList,
		DefaultQualifiedResource:  r.groupResource(r.plural),
		SingularQualifiedResource: r.groupResource(r.singular),
		CreateStrategy:            base,
		UpdateStrategy:            base,
		DeleteStrategy:            base,
		ResetFieldsStrategy:       base,
		TableConvertor:            printers.NewConvertor(r.groupResource(r.plural), r.table, s.now),
		PredicateFunc: func(label labels.Selector, field fields.Selector) storage.SelectionPredicate {
			p := storage.SelectionPredicate{Label: label, Field: field, GetAttrs: r.attrs}
			if r.indexed != "" {
				p.IndexFields = []string{r.indexed}
			}
			return p
		},
	}
	if r.graceful != nil {
		st.DeleteStrategy = gracefulStrategy{base}
		st.ReturnDeletedObject = true
	}
	if r.ttlSeconds > 0 {
		st.TTLFunc = func(runtime.Object, uint64, bool) (uint64, error) { return r.ttlSeconds, nil }
	}
	if r.configure != nil {
		r.configure(s, st)
	}
	options := &generic.StoreOptions{RESTOptions: s.options, AttrFunc: r.attrs}
	if r.indexed != "" {
		options.TriggerFunc = storage.IndexerFuncs{r.indexed: r.indexValue}
		options.Indexers = &cache.Indexers{storage.FieldIndex(r.indexed): r.indexKeys}
	}
	if err := st.CompleteWithOptions(options); err != nil {
		return nil, fmt.Errorf("apiserver: open the storage of %s: %w", r.plural, err)
	}
	return &store{Store: st, r: r}, nil
}

func (r *resource) indexValue(obj runtime.Object) string { return r.fields(obj)[r.indexed] }

func (r *resource) indexKeys(obj any) ([]string, error) {
	o, ok := obj.(runtime.Object)
	if !ok {
		return nil, errors.New("not an API object")
	}
	return []string{r.indexValue(o)}, nil
}

// openStatus opens the /status endpoint beside a main endpoint.
func openStatus(main *store) *statusStore {
	st := *main.Store
	base := main.UpdateStrategy.(strategy)
	st.UpdateStrategy = statusStrategy{base}
	st.ResetFieldsStrategy = statusStrategy{base}
	st.BeginUpdate = nil // what it does is for the spec, which stays
	return &statusStore{store: &st}
}
