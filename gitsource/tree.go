package gitsource

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/filemode"
	"github.com/go-git/go-git/v5/plumbing/object"
	"github.com/go-git/go-git/v5/plumbing/storer"
)

// maxBlob bounds a file that is read into memory.
const maxBlob = 64 << 20

// treeFS is the tree of a commit as an fs.FS with symbolic links unfollowed. Like
// the storage behind it, it is used by one goroutine at a time.
type treeFS struct {
	tree    *object.Tree
	storage storer.EncodedObjectStorer
	modTime time.Time
}

var _ fs.ReadLinkFS = (*treeFS)(nil)
var _ fs.ReadDirFS = (*treeFS)(nil)

func (t *treeFS) entry(op, name string) (fileInfo, *object.Tree, error) {
	fail := func(err error) (fileInfo, *object.Tree, error) {
		return fileInfo{}, nil, &fs.PathError{Op: op, Path: name, Err: err}
	}
	if !fs.ValidPath(name) {
		return fail(fs.ErrInvalid)
	}
	if name == "." {
		return fileInfo{name: ".", mode: filemode.Dir, fs: t}, t.tree, nil
	}
	e, err := t.tree.FindEntry(name)
	if errors.Is(err, object.ErrEntryNotFound) || errors.Is(err, object.ErrDirectoryNotFound) {
		return fail(fs.ErrNotExist)
	} else if err != nil {
		return fail(err)
	}
	info := fileInfo{name: path.Base(name), mode: e.Mode, hash: e.Hash, fs: t}
	if e.Mode != filemode.Dir {
		return info, nil, nil
	}
	sub, err := object.GetTree(t.storage, e.Hash)
	if err != nil {
		return fail(err)
	}
	return info, sub, nil
}

// Open implements fs.FS. A symbolic link opens as a file with its target.
func (t *treeFS) Open(name string) (fs.File, error) {
	info, dir, err := t.entry("open", name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return &openDir{info: info, tree: dir, fs: t}, nil
	}
	if info.Size() > maxBlob {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("the file has %d MiB, at most %d are read", info.Size()>>20, maxBlob>>20)}
	}
	blob, err := object.GetBlob(t.storage, info.hash)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	r, err := blob.Reader()
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &openFile{info: info, r: r}, nil
}

// Lstat implements fs.ReadLinkFS.
func (t *treeFS) Lstat(name string) (fs.FileInfo, error) {
	info, _, err := t.entry("lstat", name)
	if err != nil {
		return nil, err
	}
	return info, nil
}

// Stat is Lstat: links are not followed.
func (t *treeFS) Stat(name string) (fs.FileInfo, error) { return t.Lstat(name) }

// ReadLink implements fs.ReadLinkFS.
func (t *treeFS) ReadLink(name string) (string, error) {
	info, _, err := t.entry("readlink", name)
	if err != nil {
		return "", err
	}
	if info.mode != filemode.Symlink || info.Size() > 4096 {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: fs.ErrInvalid}
	}
	f, err := t.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, f); err != nil {
		return "", err
	}
	return b.String(), nil
}

// ReadDir implements fs.ReadDirFS. A submodule is an empty directory.
func (t *treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	_, dir, err := t.entry("readdir", name)
	if err != nil {
		return nil, err
	}
	if dir == nil {
		return nil, nil
	}
	return t.list(dir), nil
}

func (t *treeFS) list(dir *object.Tree) []fs.DirEntry {
	out := make([]fs.DirEntry, 0, len(dir.Entries))
	for _, e := range dir.Entries {
		if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			continue // no honest client makes such names
		}
		out = append(out, fs.FileInfoToDirEntry(fileInfo{name: e.Name, mode: e.Mode, hash: e.Hash, fs: t}))
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name() < out[j].Name() })
	return out
}

type fileInfo struct {
	name string
	mode filemode.FileMode
	hash plumbing.Hash
	fs   *treeFS
}

func (i fileInfo) Name() string       { return i.name }
func (i fileInfo) ModTime() time.Time { return i.fs.modTime }
func (i fileInfo) Sys() any           { return nil }
func (i fileInfo) IsDir() bool        { return i.mode == filemode.Dir || i.mode == filemode.Submodule }

func (i fileInfo) Size() int64 {
	if i.IsDir() {
		return 0
	}
	n, err := i.fs.storage.EncodedObjectSize(i.hash)
	if err != nil {
		return 0
	}
	return n
}

func (i fileInfo) Mode() fs.FileMode {
	switch i.mode {
	case filemode.Dir, filemode.Submodule:
		return fs.ModeDir | 0o755
	case filemode.Symlink:
		return fs.ModeSymlink | 0o777
	case filemode.Executable:
		return 0o755
	}
	return 0o644
}

type openFile struct {
	info fileInfo
	r    io.ReadCloser
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.info, nil }
func (f *openFile) Read(p []byte) (int, error) { return f.r.Read(p) }
func (f *openFile) Close() error               { return f.r.Close() }

type openDir struct {
	info fileInfo
	tree *object.Tree
	fs   *treeFS
	at   int
}

func (d *openDir) Stat() (fs.FileInfo, error) { return d.info, nil }
func (d *openDir) Close() error               { return nil }
func (d *openDir) Read([]byte) (int, error) {
	return 0, &fs.PathError{Op: "read", Path: d.info.name, Err: errors.New("is a directory")}
}

func (d *openDir) ReadDir(n int) ([]fs.DirEntry, error) {
	var all []fs.DirEntry
	if d.tree != nil {
		all = d.fs.list(d.tree)
	}
	rest := all[min(d.at, len(all)):]
	if n <= 0 {
		d.at = len(all)
		return rest, nil
	}
	if len(rest) == 0 {
		return nil, io.EOF
	}
	rest = rest[:min(n, len(rest))]
	d.at += len(rest)
	return rest, nil
}
