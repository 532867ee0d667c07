package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	v1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reasonInvalidStatic is the reason of the event about a file that is not a pod.
const reasonInvalidStatic = "InvalidStaticPod"

// staticPods runs the pods of the node's own files, with or without the API, and keeps
// mirrors of them there ("Create static Pods").
type staticPods struct {
	a   *Agent
	dir *staticDir
	// wake asks to look at the mirrors.
	wake chan struct{}

	mu   sync.Mutex
	pods map[types.NamespacedName]*staticState
}

// staticState is one name of a static pod.
type staticState struct {
	// want is the pod of the file, nil when there is none.
	want *v1.Pod
	// w runs a pod of this name, pod; while leaving, it ends. There is one at a time.
	w       *worker
	pod     *v1.Pod
	leaving bool
	// mirror is what the API has of it, as far as known; creating, that it was asked to
	// have one.
	mirror   *v1.Pod
	creating bool
}

func newStaticPods(a *Agent) *staticPods {
	s := &staticPods{a: a, wake: make(chan struct{}, 1), pods: map[types.NamespacedName]*staticState{}}
	s.dir = &staticDir{policy: a.cfg.StaticPods, node: a.cfg.NodeName, complain: s.complain}
	return s
}

func (s *staticPods) complain(file string, err error) {
	what := "directory of static pods " + s.a.cfg.StaticPods.Dir
	if file != "" {
		what = "static pod file " + file
	}
	s.a.log.Error("not run: "+what, "error", err)
	const most = 900 // of the 1024 that an event may have
	text := fmt.Sprintf("%s: %v", what, err)
	s.a.nodeEvent(v1.EventTypeWarning, reasonInvalidStatic, strings.ToValidUTF8(text[:min(len(text), most)], ""))
}

// scan reads the directory, starts what is new and ends what is gone or changed.
func (s *staticPods) scan() {
	if s.a.cfg.StaticPods.Dir == "" {
		return
	}
	pods, ok := s.dir.read()
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, st := range s.pods {
		st.want = pods[key]
		if st.w != nil && (st.want == nil || st.want.UID != st.pod.UID) && !st.leaving {
			st.leaving = true
			st.w.setGone()
		}
	}
	for key, pod := range pods {
		s.state(key).want = pod
	}
	for _, st := range s.pods {
		s.start(st)
	}
	s.poke()
}

// state is that of a name, made if need be. The caller holds mu.
func (s *staticPods) state(key types.NamespacedName) *staticState {
	st := s.pods[key]
	if st == nil {
		st = &staticState{}
		s.pods[key] = st
	}
	return st
}

// start runs the pod that is wanted, unless one of its name still runs. The caller
// holds mu.
func (s *staticPods) start(st *staticState) {
	if st.want == nil || st.w != nil {
		return
	}
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.a.draining {
		return
	}
	st.pod, st.leaving = st.want, false
	st.w = s.a.addWorker(st.want)
	if st.mirror != nil {
		st.w.status.setMirror(st.mirror)
	}
}

// ended takes note that nothing is left of a pod.
func (s *staticPods) ended(w *worker) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.pods[types.NamespacedName{Namespace: w.namespace, Name: w.name}]
	if st == nil || st.w != w {
		return
	}
	st.w, st.pod, st.leaving = nil, nil, false
	s.start(st)
	s.poke()
}

// setMirror takes a mirror as the API has it.
func (s *staticPods) setMirror(pod *v1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.learn(types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}, pod)
	s.poke()
}

// removeMirror takes note that a mirror is gone.
func (s *staticPods) removeMirror(pod *v1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
	if st := s.pods[key]; st != nil && st.mirror != nil && st.mirror.UID == pod.UID {
		s.learn(key, nil)
	}
	s.poke()
}

// replaceMirrors takes all mirrors that there are.
func (s *staticPods) replaceMirrors(list []*v1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := map[types.NamespacedName]*v1.Pod{}
	for _, pod := range list {
		seen[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	}
	for key := range s.pods {
		s.learn(key, seen[key])
	}
	for key, pod := range seen {
		s.learn(key, pod)
	}
	s.poke()
}

// learn takes note of what the API has under a name. The caller holds mu.
func (s *staticPods) learn(key types.NamespacedName, mirror *v1.Pod) {
	st := s.state(key)
	st.mirror, st.creating = mirror, false
	if st.w != nil {
		st.w.status.setMirror(mirror)
	}
}

func (s *staticPods) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// keepMirrors brings the mirrors in line with the pods, for as long as ctx lives.
func (s *staticPods) keepMirrors(ctx context.Context) {
	for _, known := range []<-chan struct{}{s.a.firstList, s.a.node.registered} {
		select {
		case <-known:
		case <-ctx.Done():
			return
		}
	}
	delay := time.Second
	for {
		var retry <-chan time.Time
		if s.syncMirrors(ctx) {
			delay = time.Second
		} else {
			retry = time.After(delay)
			delay = min(2*delay, time.Minute)
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		case <-retry:
		}
	}
}

// syncMirrors takes one step for each name, and says whether all went well.
func (s *staticPods) syncMirrors(ctx context.Context) bool {
	type step struct {
		key  types.NamespacedName
		verb mirrorVerb
		pod  *v1.Pod
	}
	var steps []step
	s.a.mu.Lock()
	draining := s.a.draining
	s.a.mu.Unlock()
	if draining {
		return true // a later agent starts the pods again, and finds their mirrors
	}
	s.mu.Lock()
	for key, st := range s.pods {
		verb := decideMirror(st.pod, st.leaving, st.mirror)
		switch {
		case verb == deleteMirror:
			steps = append(steps, step{key, verb, st.mirror})
		case verb == createMirror && !st.creating:
			st.creating = true
			steps = append(steps, step{key, verb, st.pod})
		case st.want == nil && st.pod == nil && st.mirror == nil:
			delete(s.pods, key)
		}
	}
	s.mu.Unlock()
	fine := true
	for _, do := range steps {
		if err := s.syncMirror(ctx, do.verb, do.pod); err != nil && ctx.Err() == nil {
			fine = false
			s.a.log.Warn(string(do.verb)+" the mirror of a static pod", "pod", do.key, "error", err)
			if do.verb == createMirror {
				s.mu.Lock()
				if st := s.pods[do.key]; st != nil {
					st.creating = false
				}
				s.mu.Unlock()
			}
		}
	}
	return fine
}

func (s *staticPods) syncMirror(ctx context.Context, verb mirrorVerb, pod *v1.Pod) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	api := s.a.cfg.Client.CoreV1().Pods(pod.Namespace)
	if verb == createMirror {
		_, err := api.Create(ctx, mirrorOf(pod, *s.a.node.uid.Load()), metav1.CreateOptions{})
		return err
	}
	now := int64(0)
	err := api.Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	if err != nil && isGone(err) && !apierrors.IsForbidden(err) {
		return nil
	}
	return err
}
