package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// staticFileLimit bounds a file of a static pod: the API takes no larger objects.
	staticFileLimit = 1 << 20
	// staticCheck is how often the directory is read when nothing tells of a change, as
	// by kubelet: it may be made later, or be on a file system that tells nothing.
	staticCheck = 20 * time.Second
	// staticSettle is how long the directory must be quiet before it is read: a file
	// that is written in several steps is read once. One that is never quiet is read
	// after staticPatience.
	staticSettle   = 100 * time.Millisecond
	staticPatience = time.Second
)

// StaticPodPolicy says where a node's static pods come from.
type StaticPodPolicy struct {
	// Dir holds one file for each; without it there are none.
	Dir string
	// Complete sets the defaults of a pod and validates it, as the API server does.
	Complete func(*v1.Pod) error
}

func (p *StaticPodPolicy) complete() error {
	if p.Dir == "" {
		return nil
	}
	if p.Complete == nil {
		return errors.New("agent: Config.StaticPods.Complete must be set")
	}
	abs, err := filepath.Abs(p.Dir)
	if err != nil {
		return fmt.Errorf("agent: directory of static pods %s: %w", p.Dir, err)
	}
	p.Dir = abs
	return nil
}

// staticDir reads the static pods of a directory.
type staticDir struct {
	policy StaticPodPolicy
	node   string
	// complain tells that a file is not a pod; file is "" for the directory.
	complain func(file string, err error)

	// good is the last pod that each file held. One that is spoilt by an edit leaves
	// what it said before running.
	good map[string]*v1.Pod
	// told is what was said of each file, so that it is said once.
	told map[string]string
}

// read returns the pods of the directory by name. ok is false when it could not be read;
// one that does not exist holds none, as kubelet sees it.
func (d *staticDir) read() (pods map[types.NamespacedName]*v1.Pod, ok bool) {
	entries, err := os.ReadDir(d.policy.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.tell("", err)
		return nil, false
	}
	delete(d.told, "")
	pods = map[types.NamespacedName]*v1.Pod{}
	from := map[types.NamespacedName]string{}
	good, told := d.good, map[string]string{}
	d.good = map[string]*v1.Pod{}
	for _, e := range entries { // in the order of their names
		name := e.Name()
		if !namesStaticPod(name) {
			continue
		}
		pod, err := d.readFile(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			d.tell(name, err)
			told[name] = d.told[name]
			pod = good[name]
		}
		if pod == nil {
			continue
		}
		key := types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}
		if other, taken := from[key]; taken {
			d.tell(name, fmt.Errorf("pod %s is already in %s", key, other))
			told[name] = d.told[name]
			continue
		}
		d.good[name], pods[key], from[key] = pod, pod, name
	}
	d.told = told
	return pods, true
}

func (d *staticDir) tell(file string, err error) {
	if d.told == nil {
		d.told = map[string]string{}
	}
	if d.told[file] != err.Error() {
		d.told[file] = err.Error()
		d.complain(file, err)
	}
}

// namesStaticPod says whether a file of this name is read.
func namesStaticPod(name string) bool {
	return !strings.HasPrefix(name, ".") && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name))
}

func (d *staticDir) readFile(name string) (*v1.Pod, error) {
	// Not to wait for who writes into a pipe.
	f, err := os.OpenFile(filepath.Join(d.policy.Dir, name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, staticFileLimit+1))
	if err != nil {
		return nil, err
	}
	if len(data) > staticFileLimit {
		return nil, fmt.Errorf("larger than %d bytes", staticFileLimit)
	}
	return staticPod(data, name, d.node, d.policy.Complete)
}

// watchDir calls changed whenever the directory may have changed, until ctx ends.
func (d *staticDir) watchDir(ctx context.Context, changed func()) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		d.complain("", fmt.Errorf("watch it: %w; it is read every %s", err, staticCheck))
		watcher = &fsnotify.Watcher{}
	} else {
		defer watcher.Close()
	}
	for {
		if err == nil {
			// Again and again: it may have been made or replaced meanwhile.
			_ = watcher.Add(d.policy.Dir)
		}
		changed()
		if !settle(ctx, watcher) {
			return
		}
	}
}

// settle waits until something has happened and is over, at most until the next look
// is due. It returns false when ctx ends.
func settle(ctx context.Context, watcher *fsnotify.Watcher) bool {
	wait := time.NewTimer(staticCheck)
	defer wait.Stop()
	var first time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-watcher.Events:
		case <-watcher.Errors: // of too many events at once: some are lost
		case <-wait.C:
			return true
		}
		if first.IsZero() {
			first = time.Now()
		}
		if time.Since(first) < staticPatience {
			wait.Reset(staticSettle)
		}
	}
}
