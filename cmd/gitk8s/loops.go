package main

import (
	"context"
	"log/slog"
	"net/http"

	"k8s.io/client-go/discovery"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	metrics "k8s.io/metrics/pkg/client/clientset/versioned/typed/metrics/v1beta1"

	"gitk8s.dev/gitk8s/controlplane/controllers/certificates"
	"gitk8s.dev/gitk8s/controlplane/controllers/cronjob"
	"gitk8s.dev/gitk8s/controlplane/controllers/daemonset"
	"gitk8s.dev/gitk8s/controlplane/controllers/deployment"
	"gitk8s.dev/gitk8s/controlplane/controllers/disruption"
	"gitk8s.dev/gitk8s/controlplane/controllers/endpointslice"
	"gitk8s.dev/gitk8s/controlplane/controllers/endpointslicemirroring"
	"gitk8s.dev/gitk8s/controlplane/controllers/ephemeral"
	"gitk8s.dev/gitk8s/controlplane/controllers/garbagecollector"
	"gitk8s.dev/gitk8s/controlplane/controllers/job"
	"gitk8s.dev/gitk8s/controlplane/controllers/namespace"
	"gitk8s.dev/gitk8s/controlplane/controllers/nodeipam"
	"gitk8s.dev/gitk8s/controlplane/controllers/nodelifecycle"
	"gitk8s.dev/gitk8s/controlplane/controllers/persistentvolume"
	"gitk8s.dev/gitk8s/controlplane/controllers/podautoscaler"
	"gitk8s.dev/gitk8s/controlplane/controllers/protection"
	"gitk8s.dev/gitk8s/controlplane/controllers/replicaset"
	"gitk8s.dev/gitk8s/controlplane/controllers/serviceloadbalancer"
	"gitk8s.dev/gitk8s/controlplane/controllers/statefulset"
	"gitk8s.dev/gitk8s/controlplane/controllers/ttlafterfinished"
	"gitk8s.dev/gitk8s/controlplane/pki"
	"gitk8s.dev/gitk8s/controlplane/scheduler"
	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/reconciler"
)

// startLoops starts what one server of a cluster alone may run: controllers,
// scheduler and reconciler. They wait for the API by themselves and end with ctx.
func (c *controlPlane) startLoops(ctx context.Context, p *parts) error {
	cfg := c.api.ClientConfig(pki.UserControllerManager)
	k, _, err := client(cfg)
	if err != nil {
		return err
	}
	f := informers.NewSharedInformerFactory(k, 0)
	rec := c.events(ctx, k, "controller-manager")
	lifecycle, err := nodelifecycle.New(k, f, rec)
	if err != nil {
		return err
	}
	usage, err := metrics.NewForConfig(cfg)
	if err != nil {
		return err
	}
	loops := map[string]interface{ Run(context.Context) error }{
		"deployment controller":     deployment.New(k, f, rec),
		"replicaset controller":     replicaset.New(k, f, rec),
		"statefulset controller":    statefulset.New(k, f, rec),
		"daemonset controller":      daemonset.New(k, f, rec),
		"job controller":            job.New(k, f, rec),
		"cronjob controller":        cronjob.New(k, f, rec),
		"certificates controller":   certificates.New(k, c.ca, f),
		"ttl controller":            ttlafterfinished.New(k, f),
		"disruption controller":     disruption.New(k, f, rec),
		"replication controller":    replicaset.NewForReplicationControllers(k, f, rec),
		"endpointslice controller":  endpointslice.New(k, f, c.events(ctx, k, "endpoint-slice-controller")),
		"mirroring controller":      endpointslicemirroring.New(k, f),
		"load balancer controller":  serviceloadbalancer.New(c.balancers(), k, f, c.events(ctx, k, "service-controller")),
		"node lifecycle controller": lifecycle,
		"pod network controller":    nodeipam.New(k, f, c.ranges.Pods),
		"volume controller":         persistentvolume.New(k, f, rec),
		"protection controller":     protection.New(k, f),
		"ephemeral controller":      ephemeral.New(k, f, rec),
		"pod autoscaler":            podautoscaler.New(k, usage, f, rec),
	}
	if loops["ingress status"], err = c.newIngressStatus(k, f, c.events(ctx, k, "gitk8s-ingress")); err != nil {
		return err
	}
	meta, err := metadata.NewForConfig(cfg)
	if err != nil {
		return err
	}
	loops["garbage collector"] = garbagecollector.New(k.Discovery(), meta, slog.Default())
	loops["namespace controller"] = namespace.New(k, meta, c.ca.CertPEM(), slog.Default())
	scfg := c.api.ClientConfig(pki.UserScheduler)
	sk, _, err := client(scfg)
	if err != nil {
		return err
	}
	loops["scheduler"] = scheduler.New(sk, f, c.events(ctx, sk, "default-scheduler"))
	recon, err := c.newReconciler(ctx)
	if err != nil {
		return err
	}
	loops["reconciler"] = recon
	for name, l := range loops {
		p.run(name, func() error { return l.Run(ctx) })
	}
	p.run("informers", func() error {
		f.StartWithContext(ctx)
		<-ctx.Done()
		f.Shutdown()
		return nil
	})
	return nil
}

// readyReconciler is a reconciler that waits for the API: it asks what kinds there
// are before it watches them.
type readyReconciler struct {
	*reconciler.Reconciler
	ready <-chan struct{}
}

// Run works until ctx ends.
func (r readyReconciler) Run(ctx context.Context) error {
	select {
	case <-r.ready:
	case <-ctx.Done():
		return nil
	}
	return r.Reconciler.Run(ctx)
}

// newReconciler makes the Git loop and opens the Git server in front of it.
func (c *controlPlane) newReconciler(ctx context.Context) (readyReconciler, error) {
	cfg := c.api.ClientConfig(pki.UserReconciler)
	k, d, err := client(cfg)
	if err != nil {
		return readyReconciler{}, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return readyReconciler{}, err
	}
	recon := reconciler.New(reconciler.Config{
		Dynamic: d, Discovery: disco, Events: c.events(ctx, k, "gitk8s"), Source: c.repos,
		Images: &imageResolver{remote: c.images, secrets: k, dockerConfig: c.cfg.DockerConfig},
	})
	hooks := &gitHooks{recon: recon, apps: d}
	mux := http.NewServeMux()
	mux.Handle("/hooks/", &gitsource.Webhook{Token: hooks.webhookToken, Trigger: func(key string) { recon.Trigger(key, "webhook") }})
	mux.Handle("/", gitsource.NewServer(ctx, c.repos, hooks, gitUser, c.token))
	c.git.open(mux)
	return readyReconciler{recon, c.api.Ready()}, nil
}
