package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gitk8s.dev/gitk8s/reconciler"
	"gitk8s.dev/gitk8s/reconciler/apply"
	"gitk8s.dev/gitk8s/reconciler/plan"
	"gitk8s.dev/gitk8s/reconciler/render"
)

func revision(s string) plumbing.Revision { return plumbing.Revision(s) }

func newDiff(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "diff [APP] [DIR]",
		Short: "Show what a folder or commit would change, object by object",
		Long: `Show what a folder or commit would change.

  gitk8s diff APP [DIR]                  the files in DIR against the server
  gitk8s diff APP --rev HEAD             a commit against the server
  gitk8s diff --from main --to HEAD      two commits of a checkout, without a server

Exit code 0: no change; 1: changes; more: an error. Values of Secrets are masked.`,
		Args: maxArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return e.diff(cmd.Context(), args, true) },
	}
	diffFlags(cmd)
	return cmd
}

func newPlan(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan [APP] [DIR]",
		Short: "List what a folder or commit would create, configure and prune, in order",
		Args:  maxArgs(2),
		RunE:  func(cmd *cobra.Command, args []string) error { return e.diff(cmd.Context(), args, false) },
	}
	diffFlags(cmd)
	return cmd
}

func diffFlags(cmd *cobra.Command) {
	renderFlags(cmd)
	f := cmd.Flags()
	f.String("rev", "", "commit, branch or tag to compare instead of the files")
	f.String("from", "", "compare two commits without a server: the older one")
	f.String("to", "", "compare two commits without a server: the newer one (default: the files)")
	f.StringP("output", "o", "table", "format: table, json, yaml or markdown")
}

func (e *env) diff(ctx context.Context, args []string, diffs bool) error {
	p, err := e.diffPlan(ctx, args)
	if err != nil {
		return &exitError{2, err}
	}
	if err := e.printPlan(p, diffs); err != nil {
		return &exitError{2, err}
	}
	if p.Changes() {
		return &exitError{1, nil}
	}
	return nil
}

func (e *env) diffPlan(ctx context.Context, args []string) (plan.Plan, error) {
	from := e.v.GetString("from")
	if from == "" {
		if len(args) == 0 {
			return plan.Plan{}, fmt.Errorf("name the application, or two commits with --from and --to")
		}
		return e.planHere(ctx, args[0], dirOf(args[1:]), e.v.GetString("rev"))
	}
	dir := dirOf(args)
	before, err := e.renderHere(ctx, dir, from)
	if err != nil {
		return plan.Plan{}, fmt.Errorf("%s: %w", from, err)
	}
	after, err := e.renderHere(ctx, dir, e.v.GetString("to"))
	if err != nil {
		return plan.Plan{}, fmt.Errorf("%s: %w", orFiles(e.v.GetString("to")), err)
	}
	return betweenCommits(before, after), nil
}

func orFiles(rev string) string {
	if rev == "" {
		return "the files"
	}
	return rev
}

// betweenCommits is the plan that leads from one set of objects to another, the
// first taking the cluster's place.
func betweenCommits(before, after []render.Object) plan.Plan {
	owner := plan.Owner{Name: "checkout"}
	live := map[render.ID]*unstructured.Unstructured{}
	var owned []*unstructured.Unstructured
	stamp := func(o render.Object) *unstructured.Unstructured { return apply.Stamp(o.Unstructured, owner, "", "") }
	for _, o := range before {
		u := stamp(o)
		live[render.IDOf(u)] = u
		owned = append(owned, u)
	}
	var candidates []plan.Candidate
	for _, o := range after {
		candidates = append(candidates, plan.Candidate{Desired: o, Live: live[render.IDOf(o.Unstructured)], Applied: stamp(o)})
	}
	p, _ := plan.Make(owner, candidates, owned, true) // one owner has no conflicts
	return p
}

// keepPins gives images of the manifests the digests that the cluster runs, where
// the tag is the same: what the tag means now is asked when it is deployed.
func keepPins(c *apply.Cluster, objects []render.Object) {
	for _, o := range objects {
		if live := c.Cached(o.Unstructured); live != nil {
			reconciler.KeepPins(o.Unstructured, live)
		}
	}
}

func (e *env) printPlan(p plan.Plan, diffs bool) error {
	format := e.v.GetString("output")
	if format == "markdown" {
		return writeMarkdown(e.io.out, p, diffs)
	}
	type row struct {
		Verb plan.Verb `json:"verb"`
		ID   string    `json:"object"`
		Diff string    `json:"diff,omitempty"`
	}
	rows := []row{}
	for _, a := range p.Actions {
		r := row{Verb: a.Verb, ID: a.ID.String()}
		if diffs {
			r.Diff = a.Diff()
		}
		rows = append(rows, r)
	}
	return e.print(format, map[string]any{"summary": p.Summary(), "actions": rows}, func(w io.Writer) error { return p.Write(w, diffs) })
}

// writeMarkdown prints a plan as a comment for a pull request.
func writeMarkdown(w io.Writer, p plan.Plan, diffs bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "**gitk8s plan**: %s\n", p.Summary())
	if p.Changes() {
		b.WriteString("\n| | object |\n|---|---|\n")
	}
	for _, a := range p.Actions {
		if a.Verb != plan.Unchanged {
			fmt.Fprintf(&b, "| %s | `%s` |\n", a.Verb, a.ID)
		}
	}
	for _, a := range p.Actions {
		if text := a.Diff(); diffs && text != "" {
			fmt.Fprintf(&b, "\n<details><summary>%s</summary>\n\n````diff\n%s````\n\n</details>\n", a.ID, text)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
