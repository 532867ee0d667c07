package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"gitk8s.dev/gitk8s/registry"
)

const (
	// imageGCPeriod is how often the disk is looked at, and imageGCRetry when to look
	// again if a pull was under way.
	imageGCPeriod = 5 * time.Minute
	imageGCRetry  = 5 * time.Second
)

// ImageStore is what the agent needs to remove images that nobody uses.
type ImageStore interface {
	Images() []registry.ImageInfo
	// Prune removes the images that keep does not want.
	Prune(keep func(digest string) bool) error
}

// ImageGCPolicy says when images are removed ("Garbage Collection", container image
// lifecycle).
type ImageGCPolicy struct {
	// HighThresholdPercent of disk usage begins a collection, which ends at
	// LowThresholdPercent; 85 and 80 by default. A HighThresholdPercent of 100 means
	// that there is none.
	HighThresholdPercent, LowThresholdPercent int
	// MinimumAge of an image that is removed, 2 minutes by default.
	MinimumAge time.Duration
}

func (p *ImageGCPolicy) complete() error {
	if p.HighThresholdPercent == 0 {
		p.HighThresholdPercent = 85
	}
	if p.LowThresholdPercent == 0 {
		p.LowThresholdPercent = min(80, p.HighThresholdPercent)
	}
	if p.MinimumAge == 0 {
		p.MinimumAge = 2 * time.Minute
	}
	if p.LowThresholdPercent < 0 || p.HighThresholdPercent > 100 || p.LowThresholdPercent > p.HighThresholdPercent {
		return fmt.Errorf("agent: image collection from %d %% of disk usage to %d %%: the first must be the greater, both between 0 and 100",
			p.HighThresholdPercent, p.LowThresholdPercent)
	}
	return nil
}

// excess is how many bytes to free of a disk, 0 below the high threshold.
func (p *ImageGCPolicy) excess(capacity, available int64) int64 {
	if p.HighThresholdPercent == 100 || capacity <= 0 || 100-available*100/capacity < int64(p.HighThresholdPercent) {
		return 0
	}
	return capacity*int64(100-p.LowThresholdPercent)/100 - available
}

// candidates are the images that may be removed, the one used longest ago first.
func (p *ImageGCPolicy) candidates(images []registry.ImageInfo, inUse map[string]bool, lastUsed map[string]time.Time, now time.Time) []string {
	images = slices.DeleteFunc(slices.Clone(images), func(i registry.ImageInfo) bool {
		return inUse[i.Digest] || now.Sub(i.PulledAt) < p.MinimumAge || now.Sub(lastUsed[i.Digest]) < p.MinimumAge
	})
	slices.SortStableFunc(images, func(a, b registry.ImageInfo) int {
		if c := lastUsed[a.Digest].Compare(lastUsed[b.Digest]); c != 0 {
			return c
		}
		return a.PulledAt.Compare(b.PulledAt)
	})
	out := make([]string, 0, len(images))
	for _, i := range images {
		out = append(out, i.Digest)
	}
	return out
}

// imageUse knows which images were used when.
type imageUse struct {
	// pulls is held for reading by pulls and for writing while an image is removed: a
	// pull may be answered with what is about to go.
	pulls sync.RWMutex

	mu       sync.Mutex
	lastUsed map[string]time.Time
}

func (u *imageUse) used(digest string, now time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.lastUsed == nil {
		u.lastUsed = map[string]time.Time{}
	}
	u.lastUsed[digest] = now
}

// diskSpace is the size of the file system at path and what of it is free.
func diskSpace(path string) (capacity, available int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, 0, fmt.Errorf("ask for the space on %s: %w", path, err)
	}
	return int64(st.Blocks) * st.Bsize, int64(st.Bavail) * st.Bsize, nil
}

// runImageGC removes images for as long as ctx lives. As the kubelet does, it tells
// of a failure when it is the second in a row.
func (a *Agent) runImageGC(ctx context.Context) {
	select {
	case <-a.firstList: // before it, nobody knows what is in use
	case <-ctx.Done():
		return
	}
	failed := false
	for {
		wait := imageGCPeriod
		busy, err := a.collectImages(a.cfg.ImageStore, diskSpace)
		switch {
		case busy:
			wait = imageGCRetry
		case err != nil:
			a.log.Warn("remove unused images", "error", err)
			if failed {
				a.nodeEvent(v1.EventTypeWarning, "ImageGCFailed", err.Error())
			}
		}
		failed = err != nil
		if !pause(ctx, wait) {
			return
		}
	}
}

// collectImages removes unused images one after the other until the disk is below
// the low threshold. busy says that it stopped for a pull.
func (a *Agent) collectImages(store ImageStore, space func(string) (capacity, available int64, err error)) (busy bool, err error) {
	now := a.cfg.Now()
	capacity, available, err := space(a.cfg.DataDir)
	if err != nil {
		return false, err
	}
	if capacity <= 0 {
		a.nodeEvent(v1.EventTypeWarning, "InvalidDiskCapacity", "invalid capacity 0 on image filesystem")
		return false, fmt.Errorf("invalid capacity 0 on image filesystem")
	}
	want := a.cfg.ImageGC.excess(capacity, available)
	if want <= 0 {
		return false, nil
	}
	before := available
	for available-before < want {
		found, err := a.removeOneImage(store, now)
		if err != nil || found == removalBusy {
			return found == removalBusy, err
		}
		if found == removalNone {
			break
		}
		if _, available, err = space(a.cfg.DataDir); err != nil {
			return false, err
		}
	}
	if freed := max(available-before, 0); freed < want {
		message := fmt.Sprintf("Failed to garbage collect required amount of images. Attempted to free %d bytes, but only found %d bytes eligible to free.", want, freed)
		a.nodeEvent(v1.EventTypeWarning, "FreeDiskSpaceFailed", message)
		return false, fmt.Errorf("%s", message)
	}
	return false, nil
}

type removal int

const (
	removalDone removal = iota
	removalNone
	removalBusy
)

// removeOneImage removes the best candidate.
func (a *Agent) removeOneImage(store ImageStore, now time.Time) (removal, error) {
	if !a.images.pulls.TryLock() {
		return removalBusy, nil
	}
	defer a.images.pulls.Unlock()
	inUse, err := a.imagesInUse()
	if err != nil {
		return removalNone, err
	}
	for digest := range inUse {
		a.images.used(digest, now)
	}
	a.images.mu.Lock()
	list := a.cfg.ImageGC.candidates(store.Images(), inUse, a.images.lastUsed, now)
	a.images.mu.Unlock()
	if len(list) == 0 {
		return removalNone, nil
	}
	a.log.Info("removing an image that nothing uses", "digest", list[0])
	err = store.Prune(func(digest string) bool { return digest != list[0] })
	a.images.mu.Lock()
	defer a.images.mu.Unlock()
	delete(a.images.lastUsed, list[0])
	return removalDone, err
}

// imagesInUse are the digests of the images that a container, running or ended, was
// made from. Where that is not known of one that runs, nothing may be removed.
func (a *Agent) imagesInUse() (map[string]bool, error) {
	out := map[string]bool{}
	var err error
	a.eachWorker(func(w *worker) {
		v := w.view.Load()
		if v == nil {
			err = fmt.Errorf("nothing is known of pod %s/%s yet", w.namespace, w.name)
			return
		}
		for _, runs := range []map[string]instance{v.cur, v.prev} {
			for _, in := range runs {
				if in.Removed {
					continue
				}
				_, digest, ok := strings.Cut(in.ImageID, "@")
				if ok {
					out[digest] = true
				} else if in.Running {
					err = fmt.Errorf("the image of container %s of pod %s/%s is not known", in.ID, w.namespace, w.name)
				}
			}
		}
	})
	return out, err
}

// nodeEvent tells about the node.
func (a *Agent) nodeEvent(kind, reason, message string) {
	// The kubelet takes the node's name for its UID, which `kubectl describe` relies on.
	ref := &v1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: a.cfg.NodeName, UID: types.UID(a.cfg.NodeName)}
	a.recorder.Event(ref, kind, reason, message)
}
