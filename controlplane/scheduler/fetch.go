package scheduler

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	"k8s.io/client-go/tools/cache"
)

// Snapshot is everything that decisions rest on, at one moment.
type Snapshot struct {
	Cluster *Cluster
	storage *storage
	budgets []*policyv1.PodDisruptionBudget
}

// Fetch reads a snapshot from the API.
func Fetch(ctx context.Context, client kubernetes.Interface) (*Snapshot, error) {
	s := &Snapshot{Cluster: NewCluster()}
	c := s.Cluster
	claims, volumes, classes := newIndexer(), newIndexer(), newIndexer()
	s.storage = storageIn(claims, volumes, classes)
	core, apps, all := client.CoreV1(), client.AppsV1(), metav1.NamespaceAll
	for _, fetch := range []func() error{
		func() error {
			return each(ctx, core.Namespaces().List, func(ns *corev1.Namespace) { c.SetNamespace(ns.Name, ns.Labels) })
		},
		func() error { return each(ctx, core.Nodes().List, c.SetNode) },
		func() error { return each(ctx, core.Pods(all).List, c.takeIn) },
		func() error {
			return each(ctx, core.Services(all).List, func(o *corev1.Service) { c.setService(nil, o) })
		},
		func() error {
			return each(ctx, core.ReplicationControllers(all).List, func(o *corev1.ReplicationController) { c.SetOwner(ofReplicationController(o)) })
		},
		func() error {
			return each(ctx, apps.ReplicaSets(all).List, func(o *appsv1.ReplicaSet) { c.SetOwner(ofReplicaSet(o)) })
		},
		func() error {
			return each(ctx, apps.StatefulSets(all).List, func(o *appsv1.StatefulSet) { c.SetOwner(ofStatefulSet(o)) })
		},
		func() error { return keep(ctx, core.PersistentVolumeClaims(all).List, claims) },
		func() error { return keep(ctx, core.PersistentVolumes().List, volumes) },
		func() error { return keep(ctx, client.StorageV1().StorageClasses().List, classes) },
		func() error {
			return each(ctx, client.PolicyV1().PodDisruptionBudgets(all).List, func(b *policyv1.PodDisruptionBudget) { s.budgets = append(s.budgets, b) })
		},
	} {
		if err := fetch(); err != nil {
			return nil, fmt.Errorf("read the cluster: %w", err)
		}
	}
	return s, nil
}

// takeIn takes in a pod as the scheduler does that sees it for the first time.
func (c *Cluster) takeIn(p *corev1.Pod) {
	switch {
	case ended(p):
	case p.Spec.NodeName != "":
		c.Place(NewPod(p), p.Spec.NodeName)
	case p.DeletionTimestamp == nil && len(p.Spec.SchedulingGates) == 0 && p.Status.NominatedNodeName != "":
		c.Nominate(NewPod(p), p.Status.NominatedNodeName)
	}
}

func storageIn(claims, volumes, classes cache.Indexer) *storage {
	return &storage{
		claims:  corelisters.NewPersistentVolumeClaimLister(claims),
		volumes: corelisters.NewPersistentVolumeLister(volumes), classes: storagelisters.NewStorageClassLister(classes),
	}
}

func newIndexer() cache.Indexer {
	return cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
}

// each calls f with every object of a kind.
func each[L runtime.Object, T any](ctx context.Context, list func(context.Context, metav1.ListOptions) (L, error), f func(*T)) error {
	objects, err := list(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	return meta.EachListItem(objects, func(o runtime.Object) error {
		if t, ok := any(o).(*T); ok {
			f(t)
		}
		return nil
	})
}

// keep adds every object of a kind to an indexer.
func keep[L runtime.Object](ctx context.Context, list func(context.Context, metav1.ListOptions) (L, error), to cache.Indexer) error {
	objects, err := list(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	return meta.EachListItem(objects, func(o runtime.Object) error { return to.Add(o) })
}
