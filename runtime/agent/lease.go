package agent

import (
	"context"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	leaseEvery    = 10 * time.Second
	leaseDuration = 40
)

// renewLease keeps the node's lease fresh: the sign of life by which the control
// plane tells a dead node ("Node heartbeats" in the Kubernetes documentation).
func (a *Agent) renewLease(ctx context.Context) {
	select {
	case <-a.node.registered:
	case <-ctx.Done():
		return
	}
	var lease *coordinationv1.Lease
	for {
		next := leaseEvery
		fresh, err := a.writeLease(ctx, lease)
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			a.log.Warn("renew node lease; trying again", "error", err)
			next = time.Second
		}
		lease = fresh
		if !pause(ctx, next) {
			return
		}
	}
}

// writeLease renews the lease given, or finds or makes it. On an error it returns
// nil, so that the next call reads it anew.
func (a *Agent) writeLease(ctx context.Context, lease *coordinationv1.Lease) (*coordinationv1.Lease, error) {
	ctx, cancel := context.WithTimeout(ctx, leaseEvery)
	defer cancel()
	api := a.cfg.Client.CoordinationV1().Leases(v1.NamespaceNodeLease)
	now := metav1.NewMicroTime(a.cfg.Now())
	duration := int32(leaseDuration)
	if lease == nil {
		found, err := api.Get(ctx, a.cfg.NodeName, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			fresh := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: a.cfg.NodeName, Namespace: v1.NamespaceNodeLease}}
			if uid := a.node.uid.Load(); uid != nil {
				fresh.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: a.cfg.NodeName, UID: *uid}}
			}
			fresh.Spec = coordinationv1.LeaseSpec{HolderIdentity: &a.cfg.NodeName, LeaseDurationSeconds: &duration, RenewTime: &now}
			return api.Create(ctx, fresh, metav1.CreateOptions{})
		case err != nil:
			return nil, err
		}
		lease = found
	}
	lease = lease.DeepCopy()
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &a.cfg.NodeName, &duration, &now
	updated, err := api.Update(ctx, lease, metav1.UpdateOptions{})
	if err != nil {
		return nil, err
	}
	return updated, nil
}
