package controller

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// expectationTimeout is how long a controller waits to see its own writes in its
// cache before it acts on what the cache says. A watch is never that late; but what is
// created and deleted while it is broken is never shown.
const expectationTimeout = 5 * time.Minute

// Expectations remember the creates and deletes that a controller has asked for
// and not yet seen in its cache. While any is outstanding for a key, the cache is
// older than the controller's own writes and counting on it would create or
// delete too many. Safe for concurrent use.
type Expectations struct {
	mu   sync.Mutex
	keys map[string]*expectation
	look func(key string, after time.Duration)
	now  func() time.Time
}

type expectation struct {
	creates int
	deletes map[types.UID]struct{}
	since   time.Time
}

// NewExpectations returns an empty set. It calls look, which queues a key, for when it may
// be given up that the cache shows something: no event might come then.
func NewExpectations(look func(key string, after time.Duration)) *Expectations {
	return &Expectations{keys: map[string]*expectation{}, look: look, now: time.Now}
}

// expect returns what is expected for key, to which something is being added.
func (e *Expectations) expect(key string) *expectation {
	x := e.keys[key]
	if x == nil {
		x = &expectation{deletes: map[types.UID]struct{}{}}
		e.keys[key] = x
	}
	x.since = e.now()
	e.look(key, expectationTimeout)
	return x
}

// ExpectCreate says that n objects are about to be created for key.
func (e *Expectations) ExpectCreate(key string, n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expect(key).creates += n
}

// Created says that the cache has shown one created object, or that a create
// failed and will never be shown.
func (e *Expectations) Created(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.keys[key]; x != nil && x.creates > 0 {
		x.creates--
	}
}

// ExpectDelete says that the object is about to be deleted.
func (e *Expectations) ExpectDelete(key string, uid types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.expect(key).deletes[uid] = struct{}{}
}

// Deleted says that the cache has shown the object as deleted or deleting, or
// that the delete failed.
func (e *Expectations) Deleted(key string, uid types.UID) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x := e.keys[key]; x != nil {
		delete(x.deletes, uid)
	}
}

// Satisfied says whether the cache shows everything that was asked for.
func (e *Expectations) Satisfied(key string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	x := e.keys[key]
	if x == nil {
		return true
	}
	left := expectationTimeout - e.now().Sub(x.since)
	if (x.creates == 0 && len(x.deletes) == 0) || left <= 0 {
		delete(e.keys, key)
		return true
	}
	e.look(key, left)
	return false
}

// Forget drops the key, when its object is gone.
func (e *Expectations) Forget(key string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.keys, key)
}
