package persistentvolume

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	storage "k8s.io/component-helpers/storage/volume"
)

// world is an API with a cache that lags behind it.
type world struct {
	t       *testing.T
	r       *rand.Rand
	version int
	claims  map[string]*corev1.PersistentVolumeClaim
	volumes map[string]*corev1.PersistentVolume
	// What the controller has seen.
	seenClaims  map[string]*corev1.PersistentVolumeClaim
	seenVolumes map[string]*corev1.PersistentVolume
	writes      int
}

func (w *world) next() string { w.version++; return strconv.Itoa(w.version) }

// deliver brings one object's news to the cache, or all.
func (w *world) deliver(all bool) {
	for i := range 4 {
		name := fmt.Sprintf("c%d", i)
		if c := w.claims[name]; (all || w.r.IntN(3) == 0) && c != nil {
			w.seenClaims[name] = c.DeepCopy()
		} else if all {
			delete(w.seenClaims, name)
		}
	}
	for name, v := range w.volumes {
		if all || w.r.IntN(3) == 0 {
			w.seenVolumes[name] = v.DeepCopy()
		}
	}
	for name := range w.seenVolumes {
		if all && w.volumes[name] == nil {
			delete(w.seenVolumes, name)
		}
	}
}

func (w *world) snapshot() Snapshot {
	s := Snapshot{Classes: classes(), Nodes: nodes()}
	for _, name := range slices.Sorted(maps.Keys(w.seenVolumes)) {
		s.Volumes = append(s.Volumes, w.seenVolumes[name])
	}
	return s
}

// syncClaim and syncVolume do what the controller does with a key.
func (w *world) syncClaim(name string) {
	if c := w.seenClaims[name]; c != nil {
		w.do(DecideClaim(c, w.snapshot()))
	}
}

func (w *world) syncVolume(name string) {
	v := w.seenVolumes[name]
	if v == nil {
		return
	}
	var claim *corev1.PersistentVolumeClaim
	if ref := v.Spec.ClaimRef; ref != nil && ref.UID != "" {
		if claim = w.seenClaims[ref.Name]; claim == nil || claim.UID != ref.UID {
			claim = w.claims[ref.Name]
		}
	}
	w.do(DecideVolume(v, claim, w.snapshot()))
}

// do writes as the API lets it: what has changed since it was seen is refused, and
// with it the rest of the step.
func (w *world) do(step Step) {
	if v := step.Create; v != nil && w.volumes[v.Name] == nil {
		v = v.DeepCopy()
		v.ResourceVersion = w.next()
		w.volumes[v.Name] = v
		w.writes++
	}
	if v := step.Volume; v != nil {
		now := w.volumes[v.Name]
		if now == nil || now.ResourceVersion != v.ResourceVersion {
			return
		}
		if !apiequality.Semantic.DeepEqual(now, v) {
			v = v.DeepCopy()
			v.ResourceVersion = w.next()
			w.volumes[v.Name] = v
			w.writes++
		}
	}
	if c := step.Claim; c != nil {
		now := w.claims[c.Name]
		if now == nil || now.ResourceVersion != c.ResourceVersion {
			return
		}
		if !apiequality.Semantic.DeepEqual(now, c) {
			c = c.DeepCopy()
			c.ResourceVersion = w.next()
			w.claims[c.Name] = c
			w.writes++
		}
	}
	if v := step.Delete; v != nil {
		now := w.volumes[v.Name]
		if now == nil || now.ResourceVersion != v.ResourceVersion {
			return
		}
		for _, c := range w.claims {
			if c.Spec.VolumeName == v.Name {
				w.t.Fatalf("volume %s is deleted, and claim %s has it", v.Name, c.Name)
			}
		}
		delete(w.volumes, v.Name)
		w.writes++
	}
}

// holds checks what is true at any time: a bound claim has a volume to itself that
// is what it asked for.
func (w *world) holds() {
	w.t.Helper()
	for _, c := range w.claims {
		if !isBound(c) {
			continue
		}
		v := w.volumes[c.Spec.VolumeName]
		if v == nil || v.Spec.ClaimRef == nil || v.Spec.ClaimRef.UID != c.UID {
			w.t.Fatalf("claim %s (%s) is bound to %s, which is %+v", c.Name, c.UID, c.Spec.VolumeName, v)
		}
		if why := mismatch(c, v); why != "" {
			w.t.Fatalf("claim %s is bound to %s: %s", c.Name, v.Name, why)
		}
	}
}

func isBound(c *corev1.PersistentVolumeClaim) bool {
	return c.Annotations[storage.AnnBindCompleted] != "" && c.Spec.VolumeName != ""
}

// act is something that happens.
func (w *world) act() {
	name := fmt.Sprintf("c%d", w.r.IntN(4))
	switch w.r.IntN(8) {
	case 0:
		if w.claims[name] == nil {
			change := []claimChange{func(c *corev1.PersistentVolumeClaim) {
				c.Name, c.UID, c.ResourceVersion = name, types.UID("u"+w.next()), w.next()
			}}
			class := ""
			if w.r.IntN(2) == 0 {
				class, change = "local-path", append(change, selected("a"))
			}
			w.claims[name] = newClaim(class, change...)
		}
	case 1:
		if w.r.IntN(3) == 0 {
			delete(w.claims, name)
		}
	case 2:
		if v := fmt.Sprintf("v%d", w.r.IntN(4)); w.volumes[v] == nil {
			w.volumes[v] = newVolume(v, fmt.Sprintf("%dGi", 1+w.r.IntN(4)), "", phase(corev1.VolumePending), func(pv *corev1.PersistentVolume) { pv.ResourceVersion = w.next() })
		}
	case 3:
		delete(w.seenClaims, name)
		w.deliver(false)
	case 4, 5:
		w.syncClaim(name)
	default:
		for v := range w.seenVolumes {
			if w.r.IntN(2) == 0 {
				w.syncVolume(v)
			}
		}
	}
}

// TestBinder: whatever happens, in whatever order, seen however late, no volume has
// two claims and none goes that a claim has; and when nothing more happens all that
// can be bound is bound, and it is quiet.
func TestBinder(t *testing.T) {
	for seed := range uint64(400) {
		w := &world{
			t: t, r: rand.New(rand.NewPCG(seed, 1)), claims: map[string]*corev1.PersistentVolumeClaim{}, volumes: map[string]*corev1.PersistentVolume{},
			seenClaims: map[string]*corev1.PersistentVolumeClaim{}, seenVolumes: map[string]*corev1.PersistentVolume{},
		}
		for range 120 {
			w.act()
			w.holds()
		}
		rounds := 0
		for before := -1; before != w.writes; rounds++ {
			if rounds > 40 {
				t.Fatalf("seed %d: it does not come to rest", seed)
			}
			before = w.writes
			for i := range 4 {
				w.deliver(true)
				w.syncClaim(fmt.Sprintf("c%d", i))
			}
			for name := range w.volumes {
				w.deliver(true)
				w.syncVolume(name)
			}
			w.holds()
		}
		for _, c := range w.claims {
			if v := w.snapshot().match(c, false); !isBound(c) && v != nil {
				t.Errorf("seed %d: claim %s is not bound, and %s is free", seed, c.Name, v.Name)
			}
			if *c.Spec.StorageClassName == "local-path" && !isBound(c) {
				t.Errorf("seed %d: claim %s has no volume", seed, c.Name)
			}
		}
		for _, v := range w.volumes {
			if v.Annotations[storage.AnnDynamicallyProvisioned] != "" && v.Status.Phase != corev1.VolumeBound {
				t.Errorf("seed %d: volume %s is %s, and left", seed, v.Name, v.Status.Phase)
			}
		}
	}
}
