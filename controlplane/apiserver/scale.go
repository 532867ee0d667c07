package apiserver

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// scalable is what /scale needs of a kind.
type scalable struct {
	replicas func(obj runtime.Object) **int32
	status   func(obj runtime.Object) int32
	selector func(obj runtime.Object) *metav1.LabelSelector
}

func deploymentSubresources(_ *Server, st *store) map[string]rest.Storage {
	return map[string]rest.Storage{"scale": &scaleREST{store: st, of: scalable{
		replicas: func(obj runtime.Object) **int32 { return &obj.(*appsv1.Deployment).Spec.Replicas },
		status:   func(obj runtime.Object) int32 { return obj.(*appsv1.Deployment).Status.Replicas },
		selector: func(obj runtime.Object) *metav1.LabelSelector { return obj.(*appsv1.Deployment).Spec.Selector },
	}}}
}

func replicaSetSubresources(_ *Server, st *store) map[string]rest.Storage {
	return map[string]rest.Storage{"scale": &scaleREST{store: st, of: scalable{
		replicas: func(obj runtime.Object) **int32 { return &obj.(*appsv1.ReplicaSet).Spec.Replicas },
		status:   func(obj runtime.Object) int32 { return obj.(*appsv1.ReplicaSet).Status.Replicas },
		selector: func(obj runtime.Object) *metav1.LabelSelector { return obj.(*appsv1.ReplicaSet).Spec.Selector },
	}}}
}

func replicationControllerSubresources(_ *Server, st *store) map[string]rest.Storage {
	return map[string]rest.Storage{"scale": &scaleREST{store: st, of: scalable{
		replicas: func(obj runtime.Object) **int32 { return &obj.(*corev1.ReplicationController).Spec.Replicas },
		status:   func(obj runtime.Object) int32 { return obj.(*corev1.ReplicationController).Status.Replicas },
		selector: func(obj runtime.Object) *metav1.LabelSelector {
			return metav1.SetAsLabelSelector(obj.(*corev1.ReplicationController).Spec.Selector)
		},
	}}}
}

// scaleREST is the /scale endpoint of a kind with spec.replicas.
type scaleREST struct {
	store *store
	of    scalable
}

var (
	_ rest.Patcher                  = &scaleREST{}
	_ rest.GroupVersionKindProvider = &scaleREST{}
)

// New implements rest.Storage.
func (*scaleREST) New() runtime.Object { return &autoscalingv1.Scale{} }

// Destroy implements rest.Storage.
func (*scaleREST) Destroy() {}

// GroupVersionKind implements rest.GroupVersionKindProvider.
func (*scaleREST) GroupVersionKind(schema.GroupVersion) schema.GroupVersionKind {
	return autoscalingv1.SchemeGroupVersion.WithKind("Scale")
}

// ConvertToTable implements rest.TableConvertor.
func (s *scaleREST) ConvertToTable(ctx context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	return rest.NewDefaultTableConvertor(s.store.DefaultQualifiedResource).ConvertToTable(ctx, obj, options)
}

// Get implements rest.Getter.
func (s *scaleREST) Get(ctx context.Context, name string, options *metav1.GetOptions) (runtime.Object, error) {
	obj, err := s.store.Get(ctx, name, options)
	if err != nil {
		return nil, err
	}
	return s.scale(obj)
}

// Update implements rest.Updater.
func (s *scaleREST) Update(ctx context.Context, name string, info rest.UpdatedObjectInfo, create rest.ValidateObjectFunc, update rest.ValidateObjectUpdateFunc, _ bool, options *metav1.UpdateOptions) (runtime.Object, bool, error) {
	obj, _, err := s.store.Update(ctx, name, &scaledObject{scaleREST: s, request: info},
		s.onScale(create), s.onScaleUpdate(update), false, options)
	if err != nil {
		return nil, false, err
	}
	scale, err := s.scale(obj)
	return scale, false, err
}

func (s *scaleREST) onScale(f rest.ValidateObjectFunc) rest.ValidateObjectFunc {
	return func(ctx context.Context, obj runtime.Object) error {
		scale, err := s.scale(obj)
		if err != nil {
			return err
		}
		return f(ctx, scale)
	}
}

func (s *scaleREST) onScaleUpdate(f rest.ValidateObjectUpdateFunc) rest.ValidateObjectUpdateFunc {
	return func(ctx context.Context, obj, old runtime.Object) error {
		scale, err := s.scale(obj)
		if err != nil {
			return err
		}
		before, err := s.scale(old)
		if err != nil {
			return err
		}
		return f(ctx, scale, before)
	}
}

func (s *scaleREST) paths() managedfields.ResourcePathMappings {
	return managedfields.ResourcePathMappings{s.store.r.gv.String(): fieldpath.MakePathOrDie("spec", "replicas")}
}

// scale is the Scale that an object shows.
func (s *scaleREST) scale(obj runtime.Object) (*autoscalingv1.Scale, error) {
	m := accessor(obj)
	selector, err := metav1.LabelSelectorAsSelector(s.of.selector(obj))
	if err != nil {
		return nil, fmt.Errorf("read the selector of %s: %w", m.GetName(), err)
	}
	fields, err := managedfields.NewScaleHandler(m.GetManagedFields(), s.store.r.gv, s.paths()).ToSubresource()
	if err != nil {
		return nil, err
	}
	out := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUID(),
			ResourceVersion: m.GetResourceVersion(), CreationTimestamp: m.GetCreationTimestamp(),
			ManagedFields: fields,
		},
		Status: autoscalingv1.ScaleStatus{Replicas: s.of.status(obj), Selector: selector.String()},
	}
	if replicas := *s.of.replicas(obj); replicas != nil {
		out.Spec.Replicas = *replicas
	}
	return out, nil
}

// scaledObject turns an update of a Scale into one of the object it scales.
type scaledObject struct {
	*scaleREST
	request rest.UpdatedObjectInfo
}

// Preconditions implements rest.UpdatedObjectInfo.
func (s *scaledObject) Preconditions() *metav1.Preconditions { return s.request.Preconditions() }

// UpdatedObject implements rest.UpdatedObjectInfo.
func (s *scaledObject) UpdatedObject(ctx context.Context, old runtime.Object) (runtime.Object, error) {
	obj := old.DeepCopyObject()
	m := accessor(obj)
	if m.GetResourceVersion() == "" {
		return nil, apierrors.NewNotFound(s.store.DefaultQualifiedResource, m.GetName())
	}
	before, err := s.scale(obj)
	if err != nil {
		return nil, err
	}
	updated, err := s.request.UpdatedObject(ctx, before)
	if err != nil {
		return nil, err
	}
	scale, ok := updated.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected input object type to be Scale, but %T", updated))
	}
	if scale.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(autoscalingv1.SchemeGroupVersion.WithKind("Scale").GroupKind(), scale.Name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), scale.Spec.Replicas, "must be greater than or equal to 0"),
		})
	}
	if scale.ResourceVersion != "" {
		m.SetResourceVersion(scale.ResourceVersion)
	}
	*s.of.replicas(obj) = &scale.Spec.Replicas
	fields, err := managedfields.NewScaleHandler(m.GetManagedFields(), s.store.r.gv, s.paths()).ToParent(scale.ManagedFields)
	if err != nil {
		return nil, err
	}
	m.SetManagedFields(fields)
	return obj, nil
}
