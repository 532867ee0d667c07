package replicaset

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/controlplane/controller"
)

// target is the kind of object that a Controller keeps the pods of, seen as
// ReplicaSets. get and list read the cache, live asks the API.
type target struct {
	kind        schema.GroupVersionKind
	synced      cache.InformerSynced
	get         func(namespace, name string) (*appsv1.ReplicaSet, error)
	list        func(namespace string) ([]*appsv1.ReplicaSet, error)
	live        func(ctx context.Context, namespace, name string) (*appsv1.ReplicaSet, error)
	patchStatus func(ctx context.Context, namespace, name string, merge []byte) error
	// countsTerminating: the status has terminatingReplicas.
	countsTerminating bool
}

func replicaSets(client kubernetes.Interface, f informers.SharedInformerFactory) target {
	rs, api := f.Apps().V1().ReplicaSets(), client.AppsV1()
	return target{
		kind:   appsv1.SchemeGroupVersion.WithKind("ReplicaSet"),
		synced: rs.Informer().HasSynced,
		get: func(namespace, name string) (*appsv1.ReplicaSet, error) {
			return rs.Lister().ReplicaSets(namespace).Get(name)
		},
		list: func(namespace string) ([]*appsv1.ReplicaSet, error) {
			return rs.Lister().ReplicaSets(namespace).List(labels.Everything())
		},
		live: func(ctx context.Context, namespace, name string) (*appsv1.ReplicaSet, error) {
			return api.ReplicaSets(namespace).Get(ctx, name, metav1.GetOptions{})
		},
		patchStatus: func(ctx context.Context, namespace, name string, merge []byte) error {
			_, err := api.ReplicaSets(namespace).Patch(ctx, name, types.MergePatchType, merge, metav1.PatchOptions{}, "status")
			return err
		},
		countsTerminating: true,
	}
}

var replicationController = corev1.SchemeGroupVersion.WithKind("ReplicationController")

// NewForReplicationControllers returns a controller of ReplicationControllers that
// watches through f; f is started by the caller.
func NewForReplicationControllers(client kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) *Controller {
	rc, api := f.Core().V1().ReplicationControllers(), client.CoreV1()
	c := newController(client, f, events, target{
		kind:   replicationController,
		synced: rc.Informer().HasSynced,
		get: func(namespace, name string) (*appsv1.ReplicaSet, error) {
			o, err := rc.Lister().ReplicationControllers(namespace).Get(name)
			return asReplicaSet(o), err
		},
		list: func(namespace string) ([]*appsv1.ReplicaSet, error) {
			all, err := rc.Lister().ReplicationControllers(namespace).List(labels.Everything())
			out := make([]*appsv1.ReplicaSet, len(all))
			for i, o := range all {
				out[i] = asReplicaSet(o)
			}
			return out, err
		},
		live: func(ctx context.Context, namespace, name string) (*appsv1.ReplicaSet, error) {
			o, err := api.ReplicationControllers(namespace).Get(ctx, name, metav1.GetOptions{})
			return asReplicaSet(o), err
		},
		patchStatus: func(ctx context.Context, namespace, name string, merge []byte) error {
			_, err := api.ReplicationControllers(namespace).Patch(ctx, name, types.MergePatchType, merge, metav1.PatchOptions{}, "status")
			return err
		},
	})
	rc.Informer().AddEventHandler(controller.Handler(func(old, now *corev1.ReplicationController) {
		c.onSet(asReplicaSet(old), asReplicaSet(now))
	}))
	return c
}

// asReplicaSet shows a ReplicationController as the ReplicaSet that means the same.
// It shares the spec and metadata, which nobody changes.
func asReplicaSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	if rc == nil {
		return nil
	}
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas: rc.Spec.Replicas, MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector: &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas: rc.Status.Replicas, FullyLabeledReplicas: rc.Status.FullyLabeledReplicas,
			ReadyReplicas: rc.Status.ReadyReplicas, AvailableReplicas: rc.Status.AvailableReplicas,
			ObservedGeneration: rc.Status.ObservedGeneration,
		},
	}
	// Events name the object by its own kind.
	rs.SetGroupVersionKind(replicationController)
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status, LastTransitionTime: c.LastTransitionTime,
			Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}
