package apiserver

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Servers of one store find each other in it: each keeps a key with its address
// under a lease that ends with it, as kube-apiserver does with
// --endpoint-reconciler-type=lease. All serve on the same port.
const (
	replicaPrefix = "/gitk8s/apiservers/"
	replicaTTL    = 15 // seconds
	replicaRetry  = time.Second
)

// joinReplicas announces this server and from then on keeps the endpoints of the API
// equal to the servers that live. It returns once they have been written.
func (s *Server) joinReplicas(ctx context.Context, client kubernetes.Interface) error {
	gone, revision, err := s.announce(ctx)
	if err != nil {
		return err
	}
	if err := s.writeReplicas(ctx, client); err != nil {
		return err
	}
	go s.followReplicas(ctx, client, gone, revision)
	return nil
}

// announce writes this server's key. The channel is closed when its lease is lost.
func (s *Server) announce(ctx context.Context) (gone <-chan struct{}, revision int64, err error) {
	etcd := s.config.Etcd
	lease, err := etcd.Grant(ctx, replicaTTL)
	if err != nil {
		return nil, 0, fmt.Errorf("announce this server: %w", err)
	}
	put, err := etcd.Put(ctx, replicaPrefix+s.config.AdvertiseAddress, "", clientv3.WithLease(lease.ID))
	if err != nil {
		return nil, 0, fmt.Errorf("announce this server: %w", err)
	}
	renewals, err := etcd.KeepAlive(ctx, lease.ID)
	if err != nil {
		return nil, 0, fmt.Errorf("announce this server: %w", err)
	}
	lost := make(chan struct{})
	go func() {
		defer close(lost)
		for range renewals { // each must be received
		}
		if ctx.Err() != nil {
			// An orderly end: the others need not wait for the lease to run out. The
			// client may be closed already, and then they do.
			quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			_, _ = etcd.Revoke(quick, lease.ID)
		}
	}()
	return lost, put.Header.Revision, nil
}

func (s *Server) followReplicas(ctx context.Context, client kubernetes.Interface, gone <-chan struct{}, revision int64) {
	for ctx.Err() == nil {
		s.watchReplicas(ctx, client, gone, revision)
		var err error
		for ctx.Err() == nil {
			if gone, revision, err = s.announce(ctx); err == nil {
				err = s.writeReplicas(ctx, client)
			}
			if err == nil {
				break
			}
			slog.Warn("this server is not among the endpoints of the API, will retry", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(replicaRetry):
			}
		}
	}
}

// watchReplicas writes the endpoints at every change until the lease or the watch is
// lost.
func (s *Server) watchReplicas(ctx context.Context, client kubernetes.Interface, gone <-chan struct{}, revision int64) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := s.config.Etcd.Watch(clientv3.WithRequireLeader(ctx), replicaPrefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
	for {
		select {
		case <-gone:
			return
		case c, ok := <-changes:
			if !ok || c.Err() != nil {
				return
			}
		}
		if err := s.writeReplicas(ctx, client); err != nil {
			if ctx.Err() == nil {
				slog.Warn("the endpoints of the API are not up to date, will retry", "error", err)
			}
			return
		}
	}
}

// writeReplicas writes the endpoints. Servers that do so at once write the same.
func (s *Server) writeReplicas(ctx context.Context, client kubernetes.Interface) error {
	for {
		resp, err := s.config.Etcd.Get(ctx, replicaPrefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			return fmt.Errorf("list the servers: %w", err)
		}
		var addresses []string
		for _, kv := range resp.Kvs {
			addresses = append(addresses, path.Base(string(kv.Key)))
		}
		slices.Sort(addresses)
		if err = s.writeEndpoints(ctx, client, addresses); !apierrors.IsConflict(err) {
			return err
		}
	}
}
