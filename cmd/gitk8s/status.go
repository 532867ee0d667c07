package main

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/dynamic"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/history"
)

func newStatus(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status APP",
		Short: "Show what is deployed, what is newest, and what is in the way",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := e.dynamic()
			if err != nil {
				return err
			}
			app, err := e.application(cmd.Context(), d, args[0])
			if err != nil {
				return err
			}
			return e.print(e.v.GetString("output"), app, func(w io.Writer) error { return writeStatus(w, app, time.Now()) })
		},
	}
	outputFlag(cmd)
	namespaceFlag(cmd)
	return cmd
}

func writeStatus(w io.Writer, app *application, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	st := &app.Status
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("application", "%s/%s", app.Namespace, app.Name)
	row("phase", "%s: %s", st.Phase, st.Message)
	row("deployed", "%s", orDash(history.Short(st.DeployedCommit)))
	row("newest", "%s", orDash(history.Short(st.ObservedCommit)))
	row("objects", "%s Ready", st.Objects)
	if h := st.HeldAt; h != nil {
		row("held", "%s (%s ago)", h.Message, now.Sub(h.Time.Time).Round(time.Second))
		if h.Reason == v1alpha1.HeldByUser {
			row("", "until `gitk8s resume %s`", app.Name)
		} else {
			row("", "until a commit newer than %s, or `gitk8s resume %s`", history.Short(h.Commit), app.Name)
		}
	}
	if ls := st.LastSync; ls != nil {
		row("last sync", "%s of %s by %s, %s ago", ls.Outcome, history.Short(ls.Commit), ls.Trigger, now.Sub(ls.StartedAt.Time).Round(time.Second))
		if ls.Message != "" {
			row("", "%s", ls.Message)
		}
		if ls.RetryAt != nil {
			row("", "%d failures in a row, next try in %s", ls.Failures, max(ls.RetryAt.Sub(now), 0).Round(time.Second))
		}
	}
	for _, c := range st.Conditions {
		if c.Type == v1alpha1.ConditionSourceReady && c.Status == "False" {
			row("source", "%s", c.Message)
		}
	}
	return t.Flush()
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func newHistory(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "history APP",
		Short: "List the revisions of an application, the newest first",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := e.dynamic()
			if err != nil {
				return err
			}
			return e.history(cmd.Context(), d, args[0])
		},
	}
	outputFlag(cmd)
	namespaceFlag(cmd)
	return cmd
}

func (e *env) history(ctx context.Context, d dynamic.Interface, name string) error {
	app, err := e.application(ctx, d, name)
	if err != nil {
		return err
	}
	revisions, err := history.NewStore(d).List(ctx, app.Namespace, app.Name)
	if err != nil {
		return hint(err)
	}
	return e.print(e.v.GetString("output"), revisions, func(w io.Writer) error {
		t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "\tREVISION\tCOMMIT\tSUBJECT\tTRIGGER\tOUTCOME\tTOOK\tDEPLOYED")
		for _, r := range revisions {
			mark, took, at := "", "-", "-"
			if r.Spec.Commit == app.Status.DeployedCommit {
				mark = "*"
			}
			if r.Status.Duration != nil {
				took = r.Status.Duration.Round(10 * time.Millisecond).String()
			}
			if r.Status.DeployedAt != nil {
				at = r.Status.DeployedAt.Local().Format("2006-01-02 15:04:05")
			}
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", mark, r.Spec.Number, history.Short(r.Spec.Commit), cut(r.Spec.Subject, 50), r.Status.Trigger, r.Status.Outcome, took, at)
		}
		return t.Flush()
	})
}

func cut(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}
