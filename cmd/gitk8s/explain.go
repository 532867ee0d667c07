package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gitk8s.dev/gitk8s/controlplane/scheduler"
)

func newExplain(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain pod/NAME",
		Short: "Say for each node why a pod can or can't run there, and how it scores",
		Long: "Say for each node why a pod can or can't run there, and how it scores: what the\n" +
			"scheduler decides on the cluster as it is now. Of a pod that has a node it is\n" +
			"what would be decided if it had none.",
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, name, ok := strings.Cut(args[0], "/")
			if !ok || (kind != "pod" && kind != "pods" && kind != "po") {
				return usageError("explain what? `gitk8s explain pod/NAME`")
			}
			client, err := e.clientset()
			if err != nil {
				return err
			}
			pod, err := client.CoreV1().Pods(e.namespace()).Get(cmd.Context(), name, metav1.GetOptions{})
			if err != nil {
				return hint(err)
			}
			snapshot, err := scheduler.Fetch(cmd.Context(), client)
			if err != nil {
				return hint(err)
			}
			x := snapshot.Explain(pod)
			return e.print(e.v.GetString("output"), x, func(w io.Writer) error { return writeExplanation(w, &x) })
		},
	}
	outputFlag(cmd)
	cmd.Flags().StringP("namespace", "n", metav1.NamespaceDefault, "namespace of the pod")
	return cmd
}

func writeExplanation(w io.Writer, x *scheduler.Explanation) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) { fmt.Fprintf(t, "%s\t%s\n", name, fmt.Sprintf(format, args...)) }
	row("pod", "%s", x.Pod)
	if x.RunsOn != "" {
		row("runs on", "%s; what follows is as if it did not", x.RunsOn)
	}
	if len(x.Gates) > 0 {
		row("held back", "by scheduling gates: %s", strings.Join(x.Gates, ", "))
	}
	if x.NominatedNode != "" {
		row("nominated", "to %s, which is being cleared for it", x.NominatedNode)
	}
	if x.Chosen != "" {
		row("goes to", "%s", x.Chosen)
	} else {
		row("fits nowhere", "%s", x.Message)
	}
	if p := x.Preemption; p != nil {
		row("makes room", "on %s, in place of %s", p.Node, strings.Join(p.Victims, ", "))
	}
	if len(x.Nodes) == 0 {
		return t.Flush()
	}
	fmt.Fprintln(t)
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(t, "NODE\tFITS\tSCORE\tWHY")
	for i := range x.Nodes {
		n := &x.Nodes[i]
		if !n.Fits {
			fmt.Fprintf(t, "%s\tno\t-\t%s: %s\n", n.Node, n.Plugin, strings.Join(n.Reasons, ", "))
			continue
		}
		parts := make([]string, len(n.Scores))
		for j, s := range n.Scores {
			parts[j] = fmt.Sprintf("%s %d", s.Plugin, s.Score)
		}
		fmt.Fprintf(t, "%s\tyes\t%d\t%s\n", n.Node, n.Score, strings.Join(parts, ", "))
	}
	return t.Flush()
}
