package apiserver

import (
	"context"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// strategy is the behaviour of one resource on create, update and delete: what is
// the same for every kind, with the resource's own functions called in between.
type strategy struct {
	runtime.ObjectTyper
	names.NameGenerator
	r *resource
}

var (
	_ rest.RESTCreateStrategy              = strategy{}
	_ rest.RESTUpdateStrategy              = strategy{}
	_ rest.GarbageCollectionDeleteStrategy = strategy{}
	_ rest.RESTGracefulDeleteStrategy      = gracefulStrategy{}
	_ rest.ResetFieldsStrategy             = strategy{}
	_ rest.RESTUpdateStrategy              = statusStrategy{}
)

// NamespaceScoped implements rest.Scoper.
func (s strategy) NamespaceScoped() bool { return s.r.namespaced }

// AllowCreateOnUpdate implements rest.RESTUpdateStrategy.
func (s strategy) AllowCreateOnUpdate(context.Context) bool { return s.r.createOnUpdate }

// AllowUnconditionalUpdate implements rest.RESTUpdateStrategy.
func (s strategy) AllowUnconditionalUpdate(context.Context) bool { return true }

// DefaultGarbageCollectionPolicy implements rest.GarbageCollectionDeleteStrategy.
func (s strategy) DefaultGarbageCollectionPolicy(context.Context) rest.GarbageCollectionPolicy {
	if s.r.noGarbageCollection {
		return rest.Unsupported
	}
	if s.r.orphans != "" {
		return rest.OrphanDependents
	}
	return rest.DeleteDependents
}

// PrepareForCreate clears what only the system writes.
func (s strategy) PrepareForCreate(ctx context.Context, obj runtime.Object) {
	if status := member(obj, "Status"); status.IsValid() && s.r.status && !s.r.statusOnCreate {
		status.SetZero()
	}
	if s.r.generation {
		accessor(obj).SetGeneration(1)
	}
	if s.r.prepareCreate != nil {
		s.r.prepareCreate(ctx, obj)
	}
}

// PrepareForUpdate keeps the status, which has its own endpoint, and counts the
// generation.
func (s strategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	if s.r.status {
		copyMember(obj, old, "Status")
	}
	if s.r.prepareUpdate != nil {
		s.r.prepareUpdate(ctx, obj, old)
	}
	if !s.r.generation {
		return
	}
	changed := !equality.Semantic.DeepEqual(member(obj, "Spec").Interface(), member(old, "Spec").Interface())
	if s.r.annotationsBumpGeneration {
		changed = changed || !equality.Semantic.DeepEqual(accessor(obj).GetAnnotations(), accessor(old).GetAnnotations())
	}
	if changed {
		accessor(obj).SetGeneration(accessor(old).GetGeneration() + 1)
	}
}

// Validate checks the metadata and then what the kind has of its own.
func (s strategy) Validate(_ context.Context, obj runtime.Object) field.ErrorList {
	errs := apivalidation.ValidateObjectMetaAccessor(accessor(obj), s.r.namespaced, s.r.name, field.NewPath("metadata"))
	if s.r.check != nil {
		errs = append(errs, s.r.check(obj, nil)...)
	}
	return errs
}

// ValidateUpdate checks the object anew, and what may not change.
func (s strategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	path := field.NewPath("metadata")
	errs := apivalidation.ValidateObjectMetaAccessorUpdate(accessor(obj), accessor(old), path)
	errs = append(errs, apivalidation.ValidateObjectMetaAccessor(accessor(obj), s.r.namespaced, s.r.name, path)...)
	if s.r.check != nil {
		errs = append(errs, s.r.check(obj, old)...)
	}
	return errs
}

// WarningsOnCreate names the fields that are accepted and not acted on.
func (s strategy) WarningsOnCreate(_ context.Context, obj runtime.Object) []string {
	if s.r.warnings == nil {
		return nil
	}
	return s.r.warnings(obj)
}

// WarningsOnUpdate repeats the warnings of creation when the object changes.
func (s strategy) WarningsOnUpdate(_ context.Context, obj, _ runtime.Object) []string {
	if s.r.warnings == nil {
		return nil
	}
	return s.r.warnings(obj)
}

// Canonicalize implements rest.RESTCreateStrategy.
func (strategy) Canonicalize(runtime.Object) {}

// GetResetFields names what a write to this endpoint cannot own.
func (s strategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	set := fieldpath.NewSet()
	if s.r.status {
		set.Insert(fieldpath.MakePathOrDie("status"))
	}
	return s.r.inVersions(set)
}

// inVersions says the same of every version that serves the kind.
func (r *resource) inVersions(set *fieldpath.Set) map[fieldpath.APIVersion]*fieldpath.Set {
	out := map[fieldpath.APIVersion]*fieldpath.Set{}
	for _, gv := range append(r.alsoIn, r.gv) {
		out[fieldpath.APIVersion(gv.String())] = set
	}
	return out
}

// gracefulStrategy is the strategy of a kind that is deleted in two steps.
type gracefulStrategy struct{ strategy }

// CheckGracefulDelete implements rest.RESTGracefulDeleteStrategy.
func (s gracefulStrategy) CheckGracefulDelete(_ context.Context, obj runtime.Object, options *metav1.DeleteOptions) bool {
	return s.r.graceful(obj, options)
}

// statusStrategy is the strategy of a /status endpoint: it changes the status and
// leaves everything else as it was.
type statusStrategy struct{ strategy }

// PrepareForUpdate implements rest.RESTUpdateStrategy.
func (s statusStrategy) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	for _, name := range specMembers(obj) {
		copyMember(obj, old, name)
	}
	o, p := accessor(obj), accessor(old)
	o.SetOwnerReferences(p.GetOwnerReferences())
	o.SetFinalizers(p.GetFinalizers())
	o.SetDeletionTimestamp(p.GetDeletionTimestamp())
	o.SetDeletionGracePeriodSeconds(p.GetDeletionGracePeriodSeconds())
	if !s.r.statusWritesLabels {
		o.SetLabels(p.GetLabels())
		o.SetAnnotations(p.GetAnnotations())
	}
	if s.r.prepareStatusUpdate != nil {
		s.r.prepareStatusUpdate(ctx, obj, old)
	}
}

// ValidateUpdate implements rest.RESTUpdateStrategy.
func (s statusStrategy) ValidateUpdate(_ context.Context, obj, old runtime.Object) field.ErrorList {
	if s.r.validateStatus == nil {
		return nil
	}
	return s.r.validateStatus(obj, old)
}

// WarningsOnUpdate implements rest.RESTUpdateStrategy.
func (statusStrategy) WarningsOnUpdate(context.Context, runtime.Object, runtime.Object) []string {
	return nil
}

// GetResetFields implements rest.ResetFieldsStrategy.
func (s statusStrategy) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	set := fieldpath.NewSet()
	for _, name := range specMembers(s.r.newObject()) {
		set.Insert(fieldpath.MakePathOrDie(jsonName(s.r.newObject(), name)))
	}
	if !s.r.statusWritesLabels {
		set.Insert(fieldpath.MakePathOrDie("metadata", "labels"))
		set.Insert(fieldpath.MakePathOrDie("metadata", "annotations"))
	}
	set.Insert(fieldpath.MakePathOrDie("metadata", "finalizers"))
	set.Insert(fieldpath.MakePathOrDie("metadata", "ownerReferences"))
	set.Insert(fieldpath.MakePathOrDie("metadata", "deletionTimestamp"))
	return s.r.inVersions(set)
}

// accessor returns the metadata of an object of a served kind, all of which have it.
func accessor(obj runtime.Object) metav1.Object {
	m, err := meta.Accessor(obj)
	if err != nil {
		panic(err)
	}
	return m
}

// member returns the field of that name of an object, invalid when it has none.
func member(obj runtime.Object, name string) reflect.Value {
	return reflect.ValueOf(obj).Elem().FieldByName(name)
}

func copyMember(dst, src runtime.Object, name string) {
	member(dst, name).Set(member(src, name))
}

// specMembers are the fields of an object besides its metadata and status.
func specMembers(obj runtime.Object) []string {
	var out []string
	t := reflect.TypeOf(obj).Elem()
	for i := range t.NumField() {
		switch name := t.Field(i).Name; name {
		case "TypeMeta", "ObjectMeta", "Status":
		default:
			out = append(out, name)
		}
	}
	return out
}

func jsonName(obj runtime.Object, member string) string {
	f, _ := reflect.TypeOf(obj).Elem().FieldByName(member)
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}
