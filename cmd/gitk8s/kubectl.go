package main

import (
	"slices"

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
	flags := genericclioptions.NewConfigFlags(true).WithDeprecatedPasswordFlag().WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	explicit := slices.ContainsFunc(args, func(a string) bool { return a == "--kubeconfig" || len(a) > 13 && a[:13] == "--kubeconfig=" })
	if !explicit {
		path, err := e.kubeconfigPath()
		if err != nil {
			return err
		}
		flags.KubeConfig = &path
	}
	k := kubectl.NewKubectlCommand(kubectl.KubectlOptions{
		Arguments: append([]string{"kubectl"}, args...), ConfigFlags: flags,
		IOStreams: genericiooptions.IOStreams{In: e.io.in, Out: e.io.out, ErrOut: e.io.err},
	})
	k.SetArgs(args)
	k.SilenceErrors, k.SilenceUsage = false, false
	return k.ExecuteContext(cmd.Context())
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
			for _, s := range selectors {
				words := []string{"logs", "-n", s.namespace, "-l", s.selector, "--all-containers", "--prefix", "--tail", e.v.GetString("tail")}
				if e.v.GetBool("follow") {
					words = append(words, "--follow", "--max-log-requests", "50")
				}
				if err := e.kubectl(cmd, words); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolP("follow", "f", false, "go on with what comes")
	cmd.Flags().String("tail", "100", "lines of each container to begin with; -1 for all")
	namespaceFlag(cmd)
	return cmd
}
