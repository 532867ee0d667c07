package render

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// kustomizationNames are the file names that make a folder a kustomization.
var kustomizationNames = []string{"kustomization.yaml", "kustomization.yml", "Kustomization"}

func (r *reader) kustomization(dir string) (name string, ok bool) {
	for _, n := range kustomizationNames {
		if info, err := r.stat(path.Join(dir, n)); err == nil && !info.IsDir() {
			return path.Join(dir, n), true
		}
	}
	return "", false
}

// kustomize builds a kustomization in memory. Kustomize would fetch remote bases
// and files by itself, so every path that its files name is checked to be in the
// repository before it runs; plugins and Helm stay off.
func (r *reader) kustomize(ctx context.Context, dir, file string) ([]Object, error) {
	mem := filesys.MakeFsInMemory()
	if err := r.load(ctx, mem); err != nil {
		return nil, err
	}
	if err := r.checkLocal(mem, dir, file, map[string]bool{}); err != nil {
		return nil, err
	}
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(mem, path.Join("/", dir))
	if err != nil {
		return nil, &Error{File: file, Err: errors.New(strings.ReplaceAll(err.Error(), "'/", "'"))}
	}
	if resources.Size() > MaxObjects {
		return nil, &Error{File: file, Err: fmt.Errorf("more than %d objects", MaxObjects)}
	}
	var objects []Object
	for _, res := range resources.Resources() {
		m, err := res.Map()
		if err != nil {
			return nil, &Error{File: file, Err: err}
		}
		// Kustomize yields Go ints; the API's machinery knows int64 and float64.
		j, err := yaml.Marshal(m)
		if err != nil {
			return nil, &Error{File: file, Err: err}
		}
		found, err := Parse(file, j)
		if err != nil {
			return nil, err
		}
		for _, o := range found {
			unstructured.RemoveNestedField(o.Object, "metadata", "annotations", "config.kubernetes.io/origin")
			o.Line, o.source = 0, document{}
			objects = append(objects, o)
		}
	}
	return objects, nil
}

// load copies the repository into memory, within the limits. A kustomization may
// refer to folders beside its own.
func (r *reader) load(ctx context.Context, mem filesys.FileSystem) error {
	return fs.WalkDir(r.tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if name != "." && strings.HasPrefix(path.Base(name), ".git") && d.IsDir() {
			return fs.SkipDir
		}
		if d.IsDir() {
			return mem.MkdirAll(path.Join("/", name))
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink == 0 && info.Size() > MaxFileSize {
			return nil // no manifest; if one refers to it, kustomize says it is missing
		}
		if d.Type()&fs.ModeSymlink != 0 {
			if _, target, err := r.resolve(name); err != nil {
				return err
			} else if target.IsDir() {
				return nil
			}
		}
		b, err := r.read(name)
		if err != nil {
			return err
		}
		return mem.WriteFile(path.Join("/", name), b)
	})
}

// checkLocal walks a kustomization and everything it builds on.
func (r *reader) checkLocal(mem filesys.FileSystem, dir, file string, seen map[string]bool) error {
	if seen[file] {
		return nil // a cycle; kustomize words that error better
	}
	seen[file] = true
	b, err := mem.ReadFile(path.Join("/", file))
	if err != nil {
		return &Error{File: file, Err: err}
	}
	var k types.Kustomization
	if err := yaml.Unmarshal(b, &k); err != nil {
		return &Error{File: file, Err: errors.New(strings.TrimPrefix(err.Error(), "error unmarshaling JSON: "))}
	}
	if len(k.HelmCharts)+len(k.HelmChartInflationGenerator) > 0 {
		return &Error{File: file, Err: errors.New("helmCharts in a kustomization would run helm, which is not done here")}
	}
	for _, p := range filesOf(&k) {
		if p = strings.TrimSpace(p); strings.Contains(p, "\n") || strings.HasPrefix(p, "{") {
			continue // written inline
		}
		full := path.Join(dir, p)
		if strings.Contains(p, "://") || path.IsAbs(p) || !fs.ValidPath(full) || !mem.Exists(path.Join("/", full)) {
			return &Error{File: file, Err: fmt.Errorf("%q is not in the repository; remote bases and files are not fetched: copy it in, or add it as a subtree", p)}
		}
		if !mem.IsDir(path.Join("/", full)) {
			continue
		}
		sub, ok := r.kustomization(full)
		if !ok {
			return &Error{File: file, Err: fmt.Errorf("the folder %q has no kustomization.yaml", p)}
		}
		if err := r.checkLocal(mem, full, sub, seen); err != nil {
			return err
		}
	}
	return nil
}

// filesOf lists everything in a kustomization that kustomize would open.
func filesOf(k *types.Kustomization) []string {
	//nolint:staticcheck // deprecated fields are still read by kustomize
	paths := append(append([]string{}, k.Resources...), k.Bases...)
	paths = append(paths, k.Components...)
	paths = append(paths, k.Crds...)
	paths = append(paths, k.Configurations...)
	for _, list := range [][]string{k.Generators, k.Transformers, k.Validators} {
		paths = append(paths, list...)
	}
	for _, p := range k.Patches {
		paths = appendNonEmpty(paths, p.Path)
	}
	for _, p := range k.PatchesStrategicMerge { //nolint:staticcheck // still read
		paths = append(paths, string(p))
	}
	for _, p := range k.PatchesJson6902 { //nolint:staticcheck // still read
		paths = appendNonEmpty(paths, p.Path)
	}
	for _, p := range k.Replacements {
		paths = appendNonEmpty(paths, p.Path)
	}
	paths = appendNonEmpty(paths, k.OpenAPI["path"])
	add := func(g types.GeneratorArgs) {
		for _, f := range g.FileSources {
			if _, after, ok := strings.Cut(f, "="); ok {
				f = after
			}
			paths = append(paths, f)
		}
		paths = append(paths, g.EnvSources...)
		paths = appendNonEmpty(paths, g.EnvSource)
	}
	for _, g := range k.ConfigMapGenerator {
		add(g.GeneratorArgs)
	}
	for _, g := range k.SecretGenerator {
		add(g.GeneratorArgs)
	}
	return paths
}

func appendNonEmpty(list []string, s string) []string {
	if s == "" {
		return list
	}
	return append(list, s)
}
