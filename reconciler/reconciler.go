// Package reconciler is the Git loop: it keeps the objects of each Application
// equal to a commit. In: commits from a gitsource.Source, Applications and what
// they own by watch. Out: objects applied and pruned, Revisions, and the status of
// the Application. It talks to a cluster only through the Kubernetes API.
//
// Decide holds the logic; everything else carries it out, one step at a call, so
// that a daemon killed at any moment goes on where it was.
package reconciler

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/history"
	"gitk8s.dev/gitk8s/reconciler/apply"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

var applications = v1alpha1.SchemeGroupVersion.WithResource("applications")

// Config is what a Reconciler works with.
type Config struct {
	Dynamic   dynamic.Interface
	Discovery discovery.DiscoveryInterface
	Events    record.EventRecorder
	Source    gitsource.Source
	Images    Resolver
}

// Reconciler keeps all Applications. Its methods are safe for concurrent use.
type Reconciler struct {
	cfg     Config
	cluster *apply.Cluster
	history *history.Store
	queue   workqueue.TypedRateLimitingInterface[string]
	apps    cache.SharedIndexInformer
	feed    *feed

	mu    sync.Mutex
	state map[string]*state
}

// state is what is known of an Application besides its status; all of it can be
// found out anew.
type state struct {
	// asked is the trigger that asks for a look at the remote now; empty for none.
	asked string
	// looked is when the remote was last looked at.
	looked time.Time
	// observed is what the last look found.
	observed gitsource.Commit
	// lastTrigger is what asked for that look.
	lastTrigger string
	sourceErr   error
	// deployed are the objects of status.revision.
	deployed    []render.Object
	deployedFor string
	// drifted says that an owned object changed since the last comparison.
	drifted bool
	// healed and heals keep a fight with another writer from going at full speed.
	healed time.Time
	heals  int32
	// applied is the newest version of each object that we wrote: until the cache
	// shows it, the object's health is that of the version before.
	applied map[render.ID]written
	// replaced are the objects that we deleted to make them anew, which the cache may
	// still show.
	replaced map[render.ID]types.UID
	// began is when the deploy under way began, more exactly than the status has it.
	began time.Time
	// reported are the last lines sent to listeners, by object.
	reported map[render.ID]string
}

// written is a version of an object.
type written struct {
	uid        types.UID
	generation int64
}

// New returns a reconciler.
func New(cfg Config) *Reconciler {
	return &Reconciler{
		cfg:     cfg,
		cluster: apply.NewCluster(cfg.Dynamic, cfg.Discovery),
		history: history.NewStore(cfg.Dynamic),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, time.Minute)),
		apps:  dynamicinformer.NewDynamicSharedInformerFactory(cfg.Dynamic, 0).ForResource(applications).Informer(),
		feed:  newFeed(),
		state: map[string]*state{},
	}
}

// Key is the queue key of an Application.
func Key(namespace, name string) string { return namespace + "/" + name }

// Run works until ctx ends.
func (r *Reconciler) Run(ctx context.Context) error {
	add := func(obj any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj); err == nil {
			r.queue.Add(key)
		}
	}
	if _, err := r.apps.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add, UpdateFunc: func(_, obj any) { add(obj) }, DeleteFunc: add,
	}); err != nil {
		return err
	}
	if err := r.cluster.Watch(ctx, r.onOwned); err != nil {
		return err
	}
	var wg sync.WaitGroup
	wg.Go(func() { r.apps.RunWithContext(ctx) })
	defer wg.Wait()
	if !cache.WaitForCacheSync(ctx.Done(), r.apps.HasSynced) {
		return ctx.Err()
	}
	for range 4 {
		wg.Go(func() {
			for r.next(ctx) {
			}
		})
	}
	<-ctx.Done()
	r.queue.ShutDown()
	return nil
}

func (r *Reconciler) onOwned(owner plan.Owner, _ render.ID) {
	key := Key(owner.Namespace, owner.Name)
	r.mu.Lock()
	if st := r.state[key]; st != nil {
		st.drifted = true
	}
	r.mu.Unlock()
	r.queue.Add(key)
}

// Trigger asks for a look at an Application's remote now.
func (r *Reconciler) Trigger(key, trigger string) {
	r.mu.Lock()
	r.stateOf(key).asked = trigger
	r.mu.Unlock()
	r.queue.Add(key)
}

// Listen returns the progress of an Application until cancel is called.
func (r *Reconciler) Listen(key string) (lines <-chan Progress, cancel func()) {
	return r.feed.listen(key)
}

// stateOf is called with r.mu held.
func (r *Reconciler) stateOf(key string) *state {
	st := r.state[key]
	if st == nil {
		st = &state{drifted: true, reported: map[render.ID]string{}, applied: map[render.ID]written{}, replaced: map[render.ID]types.UID{}}
		r.state[key] = st
	}
	return st
}

func (r *Reconciler) next(ctx context.Context) bool {
	key, quit := r.queue.Get()
	if quit {
		return false
	}
	defer r.queue.Done(key)
	if err := r.sync(ctx, key); err != nil {
		if ctx.Err() == nil && !apierrors.IsConflict(err) {
			slog.Warn("application could not be reconciled, will retry", "application", key, "error", err)
		}
		r.queue.AddRateLimited(key)
		return true
	}
	r.queue.Forget(key)
	return true
}

// get returns the Application from the cache; nil if it is gone.
func (r *Reconciler) get(key string) (*v1alpha1.Application, error) {
	obj, ok, err := r.apps.GetStore().GetByKey(key)
	if err != nil || !ok {
		return nil, err
	}
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("unexpected %T in the cache", obj)
	}
	app := &v1alpha1.Application{}
	return app, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, app)
}

// sync takes the next step of one Application.
func (r *Reconciler) sync(ctx context.Context, key string) error {
	app, err := r.get(key)
	if err != nil {
		return err
	}
	if app == nil || app.DeletionTimestamp != nil {
		r.mu.Lock()
		delete(r.state, key)
		r.mu.Unlock()
		return nil
	}
	// The cache may be older than our own last write; acting on an old status would
	// deploy twice.
	live, err := r.cfg.Dynamic.Resource(applications).Namespace(app.Namespace).Get(ctx, app.Name, metav1.GetOptions{})
	if err != nil {
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	}
	app = &v1alpha1.Application{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, app); err != nil {
		return err
	}
	r.mu.Lock()
	st := r.stateOf(key)
	r.mu.Unlock()
	w := &work{Reconciler: r, key: key, app: app, was: app.Status.DeepCopy(), st: st, owner: plan.Owner{Namespace: app.Namespace, Name: app.Name}}
	return w.step(ctx)
}
