package gitsource

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/config"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// Repositories is a Source: bare mirrors of remotes, the embedded Git server's
// repositories, and repositories in folders of this machine, which are read where
// they are.
type Repositories struct {
	mirrors, local string

	mu    sync.Mutex
	locks map[string]*sync.RWMutex
	// looking are the mirrors whose remote is being asked.
	looking map[string]bool
}

// NewRepositories keeps mirrors of remotes below mirrors; the embedded Git
// server's repositories are below local, as "<namespace>/<name>.git".
func NewRepositories(mirrors, local string) *Repositories {
	return &Repositories{mirrors: mirrors, local: local, locks: map[string]*sync.RWMutex{}, looking: map[string]bool{}}
}

// lock returns the lock of a repository: shared to read objects and move
// references, exclusive to rewrite packs.
func (r *Repositories) lock(dir string) *sync.RWMutex {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.locks[dir]
	if l == nil {
		l = &sync.RWMutex{}
		r.locks[dir] = l
	}
	return l
}

// dir is where a location's repository is on disk; remote is false if it is the
// original and nothing needs to be fetched.
func (r *Repositories) dir(l Location) (dir string, remote bool, err error) {
	if l.URL == "" {
		ns, name, ok := strings.Cut(l.Key, "/")
		if !ok || !fs.ValidPath(l.Key) || strings.Contains(name, "/") {
			return "", false, fmt.Errorf("%q is not <namespace>/<name>", l.Key)
		}
		return filepath.Join(r.local, ns, name+".git"), false, nil
	}
	if path, ok := localPath(l.URL); ok {
		return path, false, nil
	}
	sum := sha256.Sum256([]byte(l.URL))
	return filepath.Join(r.mirrors, hex.EncodeToString(sum[:12])+".git"), true, nil
}

// localPath recognises file URLs and absolute paths.
func localPath(u string) (string, bool) {
	if filepath.IsAbs(u) {
		return filepath.Clean(u), true
	}
	if parsed, err := url.Parse(u); err == nil && parsed.Scheme == "file" {
		return filepath.Clean(parsed.Path), true
	}
	return "", false
}

// with opens the repository of a location for f.
func (r *Repositories) with(l Location, f func(*repository) error) error {
	dir, _, err := r.dir(l)
	if err != nil {
		return err
	}
	lock := r.lock(dir)
	lock.RLock()
	defer lock.RUnlock()
	repo, err := open(dir)
	if errors.Is(err, os.ErrNotExist) && l.URL == "" {
		return ErrEmpty // the first push makes it
	}
	if err != nil {
		return err
	}
	defer repo.close()
	return f(repo)
}

// Fetch implements Source.
func (r *Repositories) Fetch(ctx context.Context, l Location) (c Commit, err error) {
	dir, remote, err := r.dir(l)
	if err != nil {
		return Commit{}, err
	}
	if remote {
		return r.look(ctx, l, dir)
	}
	err = r.with(l, func(repo *repository) error {
		c, err = repo.find(l.Ref)
		return err
	})
	return c, err
}

// look is fetchRemote that returns when ctx ends. The ssh transport does not: a
// host that accepts a connection and says nothing would keep its caller for ever.
// What it leaves behind is one connection for each such mirror, no more.
func (r *Repositories) look(ctx context.Context, l Location, dir string) (Commit, error) {
	r.mu.Lock()
	busy := r.looking[dir]
	r.looking[dir] = true
	r.mu.Unlock()
	if busy {
		return Commit{}, fmt.Errorf("%s: %w: it has not answered the look before this one yet", redact(l.URL), ErrUnreachable)
	}
	type answer struct {
		commit Commit
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		c, err := r.fetchRemote(ctx, l, dir)
		r.mu.Lock()
		delete(r.looking, dir)
		r.mu.Unlock()
		done <- answer{c, err}
	}()
	select {
	case a := <-done:
		return a.commit, a.err
	case <-ctx.Done():
		return Commit{}, fmt.Errorf("%s: %w: no answer: %w", redact(l.URL), ErrUnreachable, ctx.Err())
	}
}

// fetchRemote asks the remote for its references, which is all that happens when
// nothing is new.
func (r *Repositories) fetchRemote(ctx context.Context, l Location, dir string) (c Commit, err error) {
	auth, err := authMethod(l)
	if err != nil {
		return Commit{}, err
	}
	if err := create(dir); err != nil {
		return Commit{}, fmt.Errorf("make a mirror of %s: %w", redact(l.URL), err)
	}
	lock := r.lock(dir)
	lock.RLock()
	defer lock.RUnlock()
	repo, err := open(dir)
	if err != nil {
		return Commit{}, err
	}
	defer repo.close()
	storage, ok := repo.storage.(*filesystem.Storage)
	if !ok {
		return Commit{}, fmt.Errorf("unexpected storage %T", repo.storage)
	}
	remote := git.NewRemote(storage, &config.RemoteConfig{Name: "origin", URLs: []string{l.URL}})
	list, err := remote.ListContext(ctx, &git.ListOptions{Auth: auth, CABundle: l.caBundle(), PeelingOption: git.AppendPeeled})
	if err != nil {
		return Commit{}, classify(l, err)
	}
	all := refs{}
	for _, ref := range list {
		name, peeled := strings.CutSuffix(string(ref.Name()), "^{}")
		n := plumbing.ReferenceName(name)
		if ref.Type() != plumbing.HashReference || !(n.IsBranch() || n.IsTag()) {
			continue
		}
		if _, known := all[n]; !known || peeled {
			all[n] = ref.Hash()
		}
	}
	name, hash, ok := all.resolve(l.Ref)
	specs := []config.RefSpec{"+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"}
	switch {
	case ok && repo.storage.HasEncodedObject(hash) == nil:
		return repo.commit(hash)
	case ok:
		specs = []config.RefSpec{config.RefSpec(fmt.Sprintf("+%s:%s", name, name))}
	case isSHA(l.Ref):
		if c, err := repo.bySHA(l.Ref); err == nil {
			return c, nil
		}
	case len(all) == 0:
		return Commit{}, fmt.Errorf("%s: %w", redact(l.URL), ErrEmpty)
	default:
		return Commit{}, fmt.Errorf("%s: %w", redact(l.URL), notFound(l.Ref, all))
	}
	err = remote.FetchContext(ctx, &git.FetchOptions{Auth: auth, CABundle: l.caBundle(), RefSpecs: specs, Tags: git.NoTags, Force: true})
	if err != nil && !errors.Is(err, git.NoErrAlreadyUpToDate) {
		return Commit{}, classify(l, err)
	}
	storage.Reindex()
	if ok {
		return repo.commit(hash)
	}
	c, err = repo.bySHA(l.Ref)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return Commit{}, fmt.Errorf("%s: %w", redact(l.URL), notFound(l.Ref, all))
	}
	return c, err
}

// Commit implements Source.
func (r *Repositories) Commit(_ context.Context, l Location, sha string) (c Commit, err error) {
	err = r.with(l, func(repo *repository) error {
		c, err = repo.bySHA(sha)
		return err
	})
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return c, fmt.Errorf("%w: commit %s", ErrRefNotFound, sha)
	}
	return c, err
}

// Files implements Source.
func (r *Repositories) Files(ctx context.Context, l Location, sha string) (fs.FS, error) {
	dir, _, err := r.dir(l)
	if err != nil {
		return nil, err
	}
	repo, err := open(dir)
	if err != nil {
		return nil, err
	}
	files, err := repo.files(sha)
	if err != nil {
		return nil, errors.Join(err, repo.close())
	}
	context.AfterFunc(ctx, func() { _ = repo.close() })
	return files, nil
}

// IsAncestor implements Source.
func (r *Repositories) IsAncestor(ctx context.Context, l Location, old, new string) (ok bool, err error) {
	err = r.with(l, func(repo *repository) error {
		ok, err = repo.isAncestor(ctx, old, new)
		return err
	})
	if errors.Is(err, ErrEmpty) || errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return ok, err
}

// Keep implements Source. Repositories of this machine that are not ours are left
// as they are.
func (r *Repositories) Keep(_ context.Context, l Location, shas []string) error {
	if _, ours := localPath(l.URL); ours {
		return nil
	}
	return r.with(l, func(repo *repository) error { return repo.keep(shas) })
}
