package main

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	kubectl "k8s.io/kubectl/pkg/cmd"
)

func newKubectl(e *env) *cobra.Command {
	return &cobra.Command{
		Use:                "kubectl …",
		Short:              "kubectl itself, wired to this cluster",
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			args, err := e.takeOurFlags(args)
			if err != nil {
				return err
			}
			return e.kubectl(cmd, args)
		},
	}
}

// takeOurFlags reads the flags before kubectl's own words that are ours.
func (e *env) takeOurFlags(args []string) ([]string, error) {
	for len(args) >= 2 && (args[0] == "--data-dir" || args[0] == "--config") {
		e.v.Set(args[0][2:], args[1])
		args = args[2:]
	}
	return args, nil
}

// kubectl runs kubectl's own command tree in this process. It ends the process
// itself on an error, with the codes that kubectl has.
func (e *env) kubectl(cmd *cobra.Command, args []string) error {
	k, err := e.kubectlCommand(args)
	if err != nil {
		return err
	}
	return k.ExecuteContext(cmd.Context())
}

func (e *env) kubectlCommand(args []string) (*cobra.Command, error) {
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	explicit := slices.ContainsFunc(args, func(a string) bool { return a == "--kubeconfig" || len(a) > 13 && a[:13] == "--kubeconfig=" })
	if !explicit {
		path, err := e.kubeconfigPath()
		if err != nil {
			return nil, err
		}
		flags.KubeConfig = &path
	}
	k := kubectl.NewKubectlCommand(kubectl.KubectlOptions{
		Arguments: append([]string{"kubectl"}, args...), ConfigFlags: flags,
		IOStreams: genericiooptions.IOStreams{In: e.io.in, Out: e.io.out, ErrOut: e.io.err},
	})
	k.SetArgs(args)
	k.SilenceErrors, k.SilenceUsage = false, false
	return k, nil
}

func newLogs(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "logs APP",
		Short: "Print the logs of an application's pods",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, owner, err := e.watchedCluster(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			selectors := workloadSelectors(c.Owned(owner))
			c.stop()
			if len(selectors) == 0 {
				e.say("application %s runs no pods", args[0])
				return nil
			}
			return e.logs(cmd.Context(), selectors)
		},
	}
	cmd.Flags().BoolP("follow", "f", false, "go on with what comes")
	cmd.Flags().String("tail", "100", "lines of each container to begin with; -1 for all")
	namespaceFlag(cmd)
	return cmd
}

// logs prints the logs of the pods of each selector: one after the other, or all at
// once when they are followed, for none of them ends by itself then.
func (e *env) logs(ctx context.Context, selectors []podSelector) error {
	var commands []*cobra.Command
	for _, s := range selectors {
		words := []string{"logs", "-n", s.namespace, "-l", s.selector, "--all-containers", "--prefix", "--tail", e.v.GetString("tail")}
		if e.v.GetBool("follow") {
			words = append(words, "--follow", "--max-log-requests", "50")
		}
		k, err := e.kubectlCommand(words)
		if err != nil {
			return err
		}
		commands = append(commands, k)
	}
	errs := make([]error, len(commands))
	var wg sync.WaitGroup
	for i, k := range commands {
		if !e.v.GetBool("follow") {
			errs[i] = k.ExecuteContext(ctx)
			continue
		}
		wg.Go(func() { errs[i] = k.ExecuteContext(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
