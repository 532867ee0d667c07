// Package render turns the files of a commit into Kubernetes objects: a tree of
// plain YAML, or a kustomization. In: an fs.FS that may be hostile. Out: objects
// with the file and line they came from, or an error that names both. It talks to
// no server, runs no program and opens no connection.
package render

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Limits on what a repository may ask of the renderer.
const (
	// MaxFileSize of one manifest.
	MaxFileSize = 4 << 20
	// MaxTotalSize of all files read for one application.
	MaxTotalSize = 64 << 20
	// MaxFiles read for one application.
	MaxFiles = 20_000
	// MaxObjects in one application.
	MaxObjects = 10_000
	// maxLinks followed to reach one file.
	maxLinks = 8
)

// Object is one rendered object and where it came from.
type Object struct {
	*unstructured.Unstructured
	// File is the path in the repository, empty for generated objects.
	File string
	// Line of the document's first key, from 1.
	Line int
	// Autoscaled: an autoscaler of the same commit decides on spec.replicas, which is
	// not in the object any more. Replicas is what it was, nil if there was none.
	Autoscaled bool
	Replicas   *int64

	source document // what was parsed, to find the lines of its fields
}

// Source is "file:line", for messages.
func (o Object) Source() string {
	if o.File == "" {
		return "kustomization"
	}
	if o.Line == 0 {
		return o.File
	}
	return fmt.Sprintf("%s:%d", o.File, o.Line)
}

// ID is what makes an object one: group, kind, namespace and name. The version
// does not count.
type ID struct {
	Group, Kind, Namespace, Name string
}

// IDOf returns the identity of an object.
func IDOf(u *unstructured.Unstructured) ID {
	gvk := u.GroupVersionKind()
	return ID{gvk.Group, gvk.Kind, u.GetNamespace(), u.GetName()}
}

// String is the form that kubectl prints: "deployment.apps/web", with the
// namespace in front where there is one.
func (id ID) String() string {
	kind := strings.ToLower(id.Kind)
	if id.Group != "" {
		kind += "." + id.Group
	}
	if id.Namespace != "" {
		return id.Namespace + "/" + kind + "/" + id.Name
	}
	return kind + "/" + id.Name
}

// Options of a rendering.
type Options struct {
	// Path is the folder in the tree, "." by default.
	Path string
	// Namespace is given to namespaced objects that name none.
	Namespace string
	// Namespaced says whether a kind lives in namespaces; known is false for a kind
	// that is not served, which is an error naming the file. Nil means the built-in
	// kinds, of which all others are taken to be namespaced.
	Namespaced func(schema.GroupVersionKind) (namespaced, known bool)
}

// Error is a fault in a manifest.
type Error struct {
	File string
	Line int
	Err  error
}

func (e *Error) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
	}
	if e.File == "" {
		return e.Err.Error()
	}
	return fmt.Sprintf("%s: %v", e.File, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Render returns the objects of a tree in the order of their files. All faults
// found are joined in the error.
func Render(ctx context.Context, tree fs.FS, o Options) ([]Object, error) {
	dir := path.Clean(strings.TrimPrefix(o.Path, "/"))
	if !fs.ValidPath(dir) {
		return nil, &Error{File: o.Path, Err: errors.New("the path leaves the repository")}
	}
	r := &reader{tree: tree}
	info, err := r.stat(dir)
	if err != nil || !info.IsDir() {
		return nil, &Error{File: dir, Err: errors.New("no such folder in the repository; check spec.source.path")}
	}
	var objects []Object
	if name, ok := r.kustomization(dir); ok {
		objects, err = r.kustomize(ctx, dir, name)
	} else {
		objects, err = r.plain(ctx, dir)
	}
	if err != nil {
		return nil, err
	}
	return finish(objects, o)
}

// reader reads a tree within the limits.
type reader struct {
	tree  fs.FS
	total int64
	files int
}

// resolve follows symbolic links of the last element, never out of the tree.
func (r *reader) resolve(name string) (string, fs.FileInfo, error) {
	origin := name
	for range maxLinks {
		info, err := fs.Lstat(r.tree, name)
		if err != nil {
			return "", nil, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return name, info, nil
		}
		target, err := fs.ReadLink(r.tree, name)
		if err != nil {
			return "", nil, err
		}
		next := path.Join(path.Dir(name), target)
		if path.IsAbs(target) || !fs.ValidPath(next) {
			return "", nil, &Error{File: origin, Err: fmt.Errorf("the symbolic link points out of the repository (to %q); remove it", target)}
		}
		name = next
	}
	return "", nil, &Error{File: origin, Err: errors.New("too many symbolic links")}
}

func (r *reader) stat(name string) (fs.FileInfo, error) {
	_, info, err := r.resolve(name)
	return info, err
}

func (r *reader) read(name string) ([]byte, error) {
	real, info, err := r.resolve(name)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, &Error{File: name, Err: errors.New("is a folder")}
	}
	if info.Size() > MaxFileSize {
		return nil, &Error{File: name, Err: fmt.Errorf("the file has %d MiB; a manifest may have %d", info.Size()>>20, MaxFileSize>>20)}
	}
	if r.files++; r.files > MaxFiles {
		return nil, &Error{File: name, Err: fmt.Errorf("more than %d files", MaxFiles)}
	}
	if r.total += info.Size(); r.total > MaxTotalSize {
		return nil, &Error{File: name, Err: fmt.Errorf("the manifests have more than %d MiB together", MaxTotalSize>>20)}
	}
	f, err := r.tree.Open(real)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxFileSize+1))
}

// plain reads every YAML and JSON file below dir. Hidden files and folders are
// left out.
func (r *reader) plain(ctx context.Context, dir string) ([]Object, error) {
	var objects []Object
	var faults []error
	err := fs.WalkDir(r.tree, dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if base := path.Base(name); strings.HasPrefix(base, ".") && base != "." {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if d.Type()&fs.ModeSymlink != 0 {
			// Also one that is no manifest: a link that leaves the tree is a trap.
			if _, info, err := r.resolve(name); err != nil {
				faults = append(faults, err)
				return nil
			} else if info.IsDir() {
				return nil
			}
		}
		if d.IsDir() || !isManifest(name) {
			return nil
		}
		b, err := r.read(name)
		if err != nil {
			faults = append(faults, err)
			return nil
		}
		found, err := Parse(name, b)
		if err != nil {
			faults = append(faults, err)
		}
		objects = append(objects, found...)
		if len(objects) > MaxObjects {
			return &Error{File: name, Err: fmt.Errorf("more than %d objects", MaxObjects)}
		}
		return nil
	})
	if err != nil {
		faults = append(faults, err)
	}
	return objects, errors.Join(faults...)
}

func isManifest(name string) bool {
	return slices.Contains([]string{".yaml", ".yml", ".json"}, strings.ToLower(path.Ext(name)))
}

// finish gives namespaces and checks what can be checked without a server.
func finish(objects []Object, o Options) ([]Object, error) {
	namespaced := o.Namespaced
	if namespaced == nil {
		namespaced = builtin
	}
	var faults []error
	seen := map[ID]Object{}
	for _, obj := range objects {
		gvk := obj.GroupVersionKind()
		inNamespace, known := namespaced(gvk)
		switch {
		case !known:
			faults = append(faults, &Error{obj.File, obj.Line, fmt.Errorf("no kind %q in version %q is served here", gvk.Kind, gvk.GroupVersion())})
			continue
		case obj.GetName() == "" && obj.GetGenerateName() != "":
			faults = append(faults, &Error{obj.File, obj.Line, fmt.Errorf("%s has metadata.generateName; an object that is applied again and again needs metadata.name", gvk.Kind)})
			continue
		case obj.GetName() == "":
			faults = append(faults, &Error{obj.File, obj.Line, fmt.Errorf("%s has no metadata.name", gvk.Kind)})
			continue
		case inNamespace && obj.GetNamespace() == "":
			obj.SetNamespace(o.Namespace)
		case !inNamespace:
			obj.SetNamespace("")
		}
		unstructured.RemoveNestedField(obj.Object, "status")
		unstructured.RemoveNestedField(obj.Object, "metadata", "creationTimestamp")
		unstructured.RemoveNestedField(obj.Object, "metadata", "managedFields")
		if err := strict(obj); err != nil {
			faults = append(faults, err)
		}
		id := IDOf(obj.Unstructured)
		if first, twice := seen[id]; twice {
			faults = append(faults, &Error{obj.File, obj.Line, fmt.Errorf("%s is defined twice: also in %s", id, first.Source())})
			continue
		}
		seen[id] = obj
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return objects, nil
}
