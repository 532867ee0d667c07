package gitsource

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// objectCacheSize bounds the objects kept in memory for one open repository.
const objectCacheSize = 16 * cache.MiByte

// keepPrefix is where references to deployed commits are kept, out of the way of
// branches and tags.
const keepPrefix = "refs/gitk8s/keep/"

// repository is one repository on disk, opened for one request: go-git's storage
// is not meant to be shared.
type repository struct {
	storage storer.Storer
	close   func() error
}

// open opens the bare repository, or the work tree's repository, in dir.
func open(dir string) (*repository, error) {
	gitDir := dir
	if info, err := os.Stat(filepath.Join(dir, ".git")); err == nil && info.IsDir() {
		gitDir = filepath.Join(dir, ".git")
	}
	if _, err := os.Stat(filepath.Join(gitDir, "HEAD")); err != nil {
		return nil, fmt.Errorf("%s is not a Git repository: %w", dir, err)
	}
	s := filesystem.NewStorageWithOptions(osfs.New(gitDir, osfs.WithBoundOS()), cache.NewObjectLRU(objectCacheSize), filesystem.Options{KeepDescriptors: true})
	return &repository{storage: s, close: s.Close}, nil
}

// create makes an empty bare repository.
func create(dir string) error {
	_, err := git.PlainInitWithOptions(dir, &git.PlainInitOptions{
		Bare: true, InitOptions: git.InitOptions{DefaultBranch: plumbing.NewBranchReferenceName("main")},
	})
	if errors.Is(err, git.ErrRepositoryAlreadyExists) {
		return nil
	}
	return err
}

// refs reads the branches and tags, tags peeled to their commits.
func (r *repository) refs() (refs, error) {
	it, err := r.storage.IterReferences()
	if err != nil {
		return nil, err
	}
	out := refs{}
	err = it.ForEach(func(ref *plumbing.Reference) error {
		if ref.Type() != plumbing.HashReference || !(ref.Name().IsBranch() || ref.Name().IsTag()) {
			return nil
		}
		hash := ref.Hash()
		if ref.Name().IsTag() {
			if tag, err := object.GetTag(r.storage, hash); err == nil {
				if c, err := tag.Commit(); err == nil {
					hash = c.Hash
				}
			}
		}
		out[ref.Name()] = hash
		return nil
	})
	return out, err
}

// find resolves a ref or SHA to a commit.
func (r *repository) find(ref string) (Commit, error) {
	all, err := r.refs()
	if err != nil {
		return Commit{}, err
	}
	if _, hash, ok := all.resolve(ref); ok {
		return r.commit(hash)
	}
	if c, err := r.bySHA(ref); err == nil {
		return c, nil
	} else if isSHA(ref) && !errors.Is(err, plumbing.ErrObjectNotFound) {
		return Commit{}, err
	}
	if len(all) == 0 {
		return Commit{}, ErrEmpty
	}
	return Commit{}, notFound(ref, all)
}

// bySHA finds a commit by its full or short name.
func (r *repository) bySHA(sha string) (Commit, error) {
	sha = strings.ToLower(sha)
	if !isSHA(sha) {
		return Commit{}, plumbing.ErrObjectNotFound
	}
	if len(sha) == 40 {
		return r.commit(plumbing.NewHash(sha))
	}
	it, err := r.storage.IterEncodedObjects(plumbing.CommitObject)
	if err != nil {
		return Commit{}, err
	}
	var found []plumbing.Hash
	err = it.ForEach(func(o plumbing.EncodedObject) error {
		if strings.HasPrefix(o.Hash().String(), sha) {
			found = append(found, o.Hash())
		}
		return nil
	})
	switch {
	case err != nil:
		return Commit{}, err
	case len(found) == 0:
		return Commit{}, plumbing.ErrObjectNotFound
	case len(found) > 1 && found[0] != found[1]:
		return Commit{}, fmt.Errorf("%w: %q is the beginning of several commits", ErrRefNotFound, sha)
	}
	return r.commit(found[0])
}

func (r *repository) commit(h plumbing.Hash) (Commit, error) {
	c, err := object.GetCommit(r.storage, h)
	if err != nil {
		return Commit{}, fmt.Errorf("commit %s: %w", h, err)
	}
	return describe(c), nil
}

// describe keeps what is shown of a commit, bounded: its author chose the text.
func describe(c *object.Commit) Commit {
	subject, _, _ := strings.Cut(strings.TrimSpace(c.Message), "\n")
	return Commit{
		SHA:     c.Hash.String(),
		Author:  printable(fmt.Sprintf("%s <%s>", c.Author.Name, c.Author.Email), 200),
		Subject: printable(subject, 200),
		Time:    c.Committer.When,
	}
}

// printable drops control characters, which could repaint a terminal, and cuts
// what is too long.
func printable(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0x9b || r == '\uFFFD' {
			return -1
		}
		return r
	}, s)
	if runes := []rune(s); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	return s
}

// isAncestor says whether old is reachable from new.
func (r *repository) isAncestor(ctx context.Context, old, new string) (bool, error) {
	if old == new {
		return true, nil
	}
	o, err := object.GetCommit(r.storage, plumbing.NewHash(old))
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	n, err := object.GetCommit(r.storage, plumbing.NewHash(new))
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	found := false
	err = object.NewCommitIterCTime(n, nil, nil).ForEach(func(c *object.Commit) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if c.Hash == o.Hash {
			found = true
			return storer.ErrStop
		}
		return nil
	})
	if errors.Is(err, plumbing.ErrObjectNotFound) {
		return found, nil // a shallow history ends somewhere
	}
	return found, err
}

func (r *repository) files(sha string) (fs.FS, error) {
	c, err := object.GetCommit(r.storage, plumbing.NewHash(sha))
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", sha, err)
	}
	tree, err := c.Tree()
	if err != nil {
		return nil, fmt.Errorf("files of commit %s: %w", sha, err)
	}
	return &treeFS{tree: tree, storage: r.storage, modTime: c.Committer.When}, nil
}

// keep makes a reference to each commit and drops those to others.
func (r *repository) keep(shas []string) error {
	want := map[plumbing.ReferenceName]plumbing.Hash{}
	for _, sha := range shas {
		h := plumbing.NewHash(sha)
		if r.storage.HasEncodedObject(h) == nil {
			want[plumbing.ReferenceName(keepPrefix+sha)] = h
		}
	}
	it, err := r.storage.IterReferences()
	if err != nil {
		return err
	}
	var gone []plumbing.ReferenceName
	err = it.ForEach(func(ref *plumbing.Reference) error {
		if !strings.HasPrefix(string(ref.Name()), keepPrefix) {
			return nil
		}
		if _, ok := want[ref.Name()]; ok {
			delete(want, ref.Name())
		} else {
			gone = append(gone, ref.Name())
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name, hash := range want {
		if err := r.storage.SetReference(plumbing.NewHashReference(name, hash)); err != nil {
			return err
		}
	}
	for _, name := range gone {
		if err := r.storage.RemoveReference(name); err != nil {
			return err
		}
	}
	return nil
}
