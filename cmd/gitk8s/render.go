package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5"
	"github.com/spf13/cobra"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gitk8s.dev/gitk8s/gitsource"
	"gitk8s.dev/gitk8s/reconciler/apply"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

func newRender(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "render [DIR]",
		Short: "Print the objects that a folder or a commit renders to",
		Args:  maxArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			objects, err := e.renderHere(cmd.Context(), dirOf(args), e.v.GetString("rev"))
			if err != nil {
				return err
			}
			var list []map[string]any
			for _, o := range objects {
				list = append(list, o.Object)
			}
			return e.print(e.v.GetString("output"), list, func(w io.Writer) error {
				for _, o := range objects {
					b, err := yaml.Marshal(o.Object)
					if err != nil {
						return err
					}
					if _, err := fmt.Fprintf(w, "---\n# %s\n%s", o.Source(), b); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
	renderFlags(cmd)
	cmd.Flags().String("rev", "", "commit, branch or tag to render instead of the files in DIR")
	outputFlag(cmd)
	return cmd
}

func renderFlags(cmd *cobra.Command) {
	cmd.Flags().String("path", ".", "folder of the manifests within DIR")
	namespaceFlag(cmd)
}

func dirOf(args []string) string {
	if len(args) == 0 {
		return "."
	}
	return args[0]
}

// renderHere renders a folder as it is, or a commit of its repository. No server
// is needed.
func (e *env) renderHere(ctx context.Context, dir, rev string) ([]render.Object, error) {
	o := render.Options{Path: e.v.GetString("path"), Namespace: e.namespace()}
	if rev == "" {
		root, err := os.OpenRoot(dir)
		if err != nil {
			return nil, err
		}
		defer root.Close()
		return render.Render(ctx, withoutGit{root.FS()}, o)
	}
	files, done, err := commitFiles(ctx, dir, rev)
	if err != nil {
		return nil, err
	}
	defer done()
	return render.Render(ctx, files, o)
}

// commitFiles opens the files of a commit of the repository around dir. Names that
// only git knows, such as HEAD~2, work too.
func commitFiles(ctx context.Context, dir, rev string) (fs.FS, func(), error) {
	repo, err := git.PlainOpenWithOptions(dir, &git.PlainOpenOptions{DetectDotGit: true})
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", dir, err)
	}
	hash, err := repo.ResolveRevision(revision(rev))
	if err != nil {
		return nil, nil, fmt.Errorf("%q is no commit, branch or tag of the repository in %s", rev, dir)
	}
	tree, err := repo.Worktree()
	root := dir
	if err == nil {
		root = tree.Filesystem.Root()
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	files, err := gitsource.NewRepositories("", "").Files(ctx, gitsource.Location{URL: abs}, hash.String())
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return files, cancel, nil
}

// withoutGit hides the repository's own folder.
type withoutGit struct{ fs.FS }

func (w withoutGit) Open(name string) (fs.File, error) {
	if name == ".git" || strings.HasPrefix(name, ".git/") {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return w.FS.Open(name)
}

func (w withoutGit) Lstat(name string) (fs.FileInfo, error)     { return fs.Lstat(w.FS, name) }
func (w withoutGit) ReadLink(name string) (string, error)       { return fs.ReadLink(w.FS, name) }
func (w withoutGit) ReadDir(name string) ([]fs.DirEntry, error) { return fs.ReadDir(w.FS, name) }

// watched is a cluster with its caches filled.
type watched struct {
	*apply.Cluster
	stop func()
}

// watchedCluster connects to the server and reads what applications own.
func (e *env) watchedCluster(ctx context.Context, app string) (*watched, plan.Owner, error) {
	owner := plan.Owner{Namespace: e.namespace(), Name: app}
	cfg, err := e.restConfig()
	if err != nil {
		return nil, owner, err
	}
	d, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, owner, err
	}
	disco, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, owner, err
	}
	c := apply.NewCluster(d, disco)
	ctx, cancel := context.WithCancel(ctx)
	if err := c.Watch(ctx, func(plan.Owner, render.ID) {}); err != nil {
		cancel()
		return nil, owner, hint(err)
	}
	return &watched{c, cancel}, owner, nil
}

// planHere compares the files in dir, or a commit of it, with the server.
func (e *env) planHere(ctx context.Context, app, dir, rev string) (plan.Plan, error) {
	c, owner, err := e.watchedCluster(ctx, app)
	if err != nil {
		return plan.Plan{}, err
	}
	defer c.stop()
	objects, err := e.renderHere(ctx, dir, rev)
	if err != nil {
		return plan.Plan{}, err
	}
	keepPins(c.Cluster, objects)
	candidates, err := c.Compare(ctx, owner, objects, func(u *unstructured.Unstructured) *unstructured.Unstructured {
		return apply.Stamp(u, owner, "", "")
	}, plan.Replaceable)
	if err != nil {
		return plan.Plan{}, err
	}
	p, conflicts := plan.Make(owner, candidates, c.Owned(owner), true)
	return p, errors.Join(conflicts...)
}
