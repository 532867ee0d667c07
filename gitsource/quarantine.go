package gitsource

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// overlay is a storage of new objects on top of a repository's: what a push
// brings can be read together with what is there, before it is let in.
type overlay struct {
	*filesystem.Storage
	base storer.Storer
}

// EncodedObject looks in both.
func (o *overlay) EncodedObject(t plumbing.ObjectType, h plumbing.Hash) (plumbing.EncodedObject, error) {
	obj, err := o.Storage.EncodedObject(t, h)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return o.base.EncodedObject(t, h)
	}
	return obj, err
}

// HasEncodedObject looks in both.
func (o *overlay) HasEncodedObject(h plumbing.Hash) error {
	if err := o.Storage.HasEncodedObject(h); err != nil {
		return o.base.HasEncodedObject(h)
	}
	return nil
}

// EncodedObjectSize looks in both.
func (o *overlay) EncodedObjectSize(h plumbing.Hash) (int64, error) {
	n, err := o.Storage.EncodedObjectSize(h)
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return o.base.EncodedObjectSize(h)
	}
	return n, err
}

// peel follows an annotated tag to its commit.
func peel(s storer.EncodedObjectStorer, h plumbing.Hash) (plumbing.Hash, error) {
	for range 5 {
		tag, err := object.GetTag(s, h)
		if errors.Is(err, plumbing.ErrObjectNotFound) {
			return h, nil
		}
		if err != nil {
			return h, err
		}
		h = tag.Target
	}
	return h, errors.New("a tag of a tag of a tag: point it at a commit")
}

// connected makes sure that everything a commit refers to is there, as far back
// as the commits that are in the repository already.
func connected(ctx context.Context, both, base *repository, tip plumbing.Hash) error {
	seenTrees := map[plumbing.Hash]bool{}
	queue := []plumbing.Hash{tip}
	seen := map[plumbing.Hash]bool{tip: true}
	for len(queue) > 0 {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		h := queue[0]
		queue = queue[1:]
		if base.storage.HasEncodedObject(h) == nil {
			continue
		}
		c, err := object.GetCommit(both.storage, h)
		if err != nil {
			return fmt.Errorf("the push lacks commit %s; is the clone shallow? `git fetch --unshallow` completes it", h)
		}
		if err := treeConnected(both, base, c.TreeHash, seenTrees); err != nil {
			return err
		}
		for _, p := range c.ParentHashes {
			if !seen[p] {
				seen[p] = true
				queue = append(queue, p)
			}
		}
	}
	return nil
}

func treeConnected(both, base *repository, h plumbing.Hash, seen map[plumbing.Hash]bool) error {
	if seen[h] || base.storage.HasEncodedObject(h) == nil {
		return nil
	}
	seen[h] = true
	t, err := object.GetTree(both.storage, h)
	if err != nil {
		return fmt.Errorf("the push lacks tree %s", h)
	}
	for _, e := range t.Entries {
		switch {
		case e.Mode.IsFile():
			if both.storage.HasEncodedObject(e.Hash) != nil {
				return fmt.Errorf("the push lacks file %q (%s)", printable(e.Name, 100), e.Hash)
			}
		case e.Mode.String() == "0040000":
			if err := treeConnected(both, base, e.Hash, seen); err != nil {
				return err
			}
		}
	}
	return nil
}

// repack joins a repository's packs into one. Readers wait: with them, go-git's
// repacking can lose objects.
func (p *push) repack() {
	lock := p.repos.lock(p.dir)
	lock.Lock()
	defer lock.Unlock()
	repo, err := git.PlainOpen(p.dir)
	if err == nil {
		err = repo.RepackObjects(&git.RepackConfig{})
	}
	if err != nil {
		slog.Warn("a repository could not be repacked; it works, more slowly", "repository", p.key, "error", err)
	}
}
