package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	clientv3 "go.etcd.io/etcd/client/v3"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

// The lease of the server that runs the loops, and its times: those of Kubernetes'
// own components (kube-controller-manager's --leader-elect-* defaults).
const (
	leaderLease   = "gitk8s-server"
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// parts run side by side until their context ends.
type parts struct {
	wg     sync.WaitGroup
	failed chan error
}

// run runs a part; one that ends early takes the whole process along. failed is told of the
// first one, and it is logged where there is another.
func (p *parts) run(name string, f func() error) {
	p.wg.Go(func() {
		if err := f(); err != nil && !errors.Is(err, context.Canceled) {
			select {
			case p.failed <- fmt.Errorf("%s: %w", name, err):
			default:
				slog.Error("another part has ended", "part", name, "error", err)
			}
		}
	})
}

// startCampaign runs the loops here or leaves them to another server.
func (c *controlPlane) startCampaign(ctx context.Context) error {
	k, _, err := client(c.api.ClientConfig(pki.UserControllerManager))
	if err != nil {
		return err
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: leaderLease},
		Client:    k.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{
			// The address is for people, the rest tells one start from the next.
			Identity:      c.apiAddress + "_" + string(uuid.NewUUID()),
			EventRecorder: c.events(ctx, k, "gitk8s-server"),
		},
	}
	ctx, end := context.WithCancel(ctx)
	over := make(chan struct{})
	c.run("leader election", func() error {
		defer close(over)
		return c.campaign(ctx, lock)
	})
	c.stepDown = func() {
		end()
		<-over
	}
	return nil
}

// campaign runs the loops whenever this server is the one of several to do so, until
// ctx ends. The others serve the API meanwhile.
func (c *controlPlane) campaign(ctx context.Context, lock resourcelock.Interface) error {
	select {
	case <-c.api.Ready():
	case <-ctx.Done():
		return nil
	}
	for ctx.Err() == nil {
		if err := c.lead(ctx, lock); err != nil {
			return err
		}
	}
	return nil
}

// lead waits for the lease and runs the loops until it is lost or ctx ends. When it
// returns, the loops have ended.
func (c *controlPlane) lead(ctx context.Context, lock resourcelock.Interface) error {
	// Not ctx itself: at the end the lease is given back after the loops have ended.
	hold, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	elected := make(chan context.Context, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod,
		ReleaseOnCancel: true, Name: leaderLease,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) { elected <- held },
			OnStoppedLeading: func() {},
			OnNewLeader:      c.git.follow,
		},
	})
	if err != nil {
		return err
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		elector.Run(hold)
	}()
	defer func() {
		release()
		<-stopped
	}()
	select {
	case <-ctx.Done():
		return nil
	case held := <-elected:
		term, end := context.WithCancel(ctx)
		defer end()
		defer context.AfterFunc(held, end)()
		slog.Info("leading: controllers, scheduler and Git loop start")
		loops := &parts{failed: c.failed}
		err := c.startLoops(term, loops)
		if err == nil {
			<-term.Done()
		}
		end()
		c.git.close()
		loops.wg.Wait()
		if ctx.Err() == nil {
			slog.Warn("no longer leading: controllers, scheduler and Git loop have stopped")
		}
		return err
	}
}

// gate serves what the loops stand behind while this server runs them. Others say
// who does: a push must reach the loop that deploys it.
type gate struct {
	mu     sync.Mutex
	inner  http.Handler
	leader string
}

func (g *gate) open(h http.Handler) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inner = h
}

func (g *gate) close() { g.open(nil) }

func (g *gate) follow(leader string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.leader = leader
}

// ServeHTTP implements http.Handler.
func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	inner, leader := g.inner, g.leader
	g.mu.Unlock()
	if inner != nil {
		inner.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Retry-After", "2")
	http.Error(w, fmt.Sprintf("this server does not lead; the one that does is %q (lease %s/%s)", leader, metav1.NamespaceSystem, leaderLease), http.StatusServiceUnavailable)
}

// authorityKey holds the cluster's authority in a store that several servers share.
const authorityKey = "/gitk8s/ca"

// sameAuthority makes sure that all servers of one store have the same certificate
// authority: with another, workers and users of one would be strangers to the rest.
func sameAuthority(ctx context.Context, store *clientv3.Client, ca *pki.CA, dataDir string) error {
	own := string(ca.CertPEM())
	resp, err := store.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(authorityKey), "=", 0)).
		Then(clientv3.OpPut(authorityKey, own)).
		Else(clientv3.OpGet(authorityKey)).Commit()
	if err != nil {
		return fmt.Errorf("compare the certificate authority with that in etcd: %w", err)
	}
	if resp.Succeeded || string(resp.Responses[0].GetResponseRange().Kvs[0].Value) == own {
		return nil
	}
	return fmt.Errorf("the cluster in this etcd has another certificate authority than %s/pki: "+
		"copy pki/ca.crt, pki/ca.key and token from the data directory of a server that belongs to it, having removed the pki folder here", dataDir)
}
