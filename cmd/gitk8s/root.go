package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"
	"k8s.io/component-base/version"
	"k8s.io/klog/v2"
)

func newRoot(io stdio) *cobra.Command {
	v := newViper()
	root := &cobra.Command{
		Use:   "gitk8s",
		Short: "Kubernetes from a Git repository, on a handful of machines",
		Long: `gitk8s turns a Git repository into running containers on a few machines,
speaking the Kubernetes API: push to deploy, roll back by commit.

  gitk8s up .                     control plane and two workers, this repository as first app
  git push gitk8s main            deploy
  gitk8s history APP              what was deployed
  gitk8s rollback APP             go back one revision, and again one further
  gitk8s kubectl get pods         kubectl, wired to this cluster`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       version.Get().GitVersion,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := readConfig(v, cmd); err != nil {
				return &exitError{2, err}
			}
			return setLog(io.err, v)
		},
	}
	root.SetIn(io.in)
	root.SetOut(io.out)
	root.SetErr(io.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w\nsee `%s --help`", err, cmd.CommandPath())
	})
	pf := root.PersistentFlags()
	pf.String("config", "", "configuration file (default /etc/gitk8s/config.yaml where it exists)")
	pf.String("data-dir", defaultDataDir(), "where everything is kept")
	pf.String("kubeconfig", "", "kubeconfig of the cluster (default: that of --data-dir)")
	pf.String("log-level", "warn", "what is logged to stderr: debug, info, warn, error")
	e := &env{v: v, io: io}
	root.AddCommand(
		newUp(e), newDown(e), newServer(e), newAgent(e), newCheck(e), newInfo(e),
		newApp(e), newRemote(e), newRender(e), newDiff(e), newPlan(e), newSync(e), newStatus(e), newHistory(e), newExplain(e), newNet(e),
		newRollback(e), newHold(e), newResume(e), newLogs(e), newKubectl(e),
	)
	return root
}

// env is what commands share: configuration and streams.
type env struct {
	v  *viper.Viper
	io stdio
}

// setLog sends slog and klog to w at the configured level.
func setLog(w io.Writer, v *viper.Viper) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(v.GetString("log-level"))); err != nil {
		return usageError("--log-level: %w", err)
	}
	h := slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
	slog.SetDefault(slog.New(h))
	// klog's info lines are kube machinery talking to itself: show them only when
	// debugging.
	klog.SetLogger(logr.FromSlogHandler(quiet{h}))
	return nil
}

// exactArgs is cobra.ExactArgs with our exit code.
func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return usageError("%s takes %d argument(s), got %d\nusage: %s", cmd.CommandPath(), n, len(args), cmd.UseLine())
		}
		return nil
	}
}

// maxArgs is cobra.MaximumNArgs with our exit code.
func maxArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > n {
			return usageError("%s takes at most %d argument(s), got %d\nusage: %s", cmd.CommandPath(), n, len(args), cmd.UseLine())
		}
		return nil
	}
}

// say prints a line of progress.
func (e *env) say(format string, args ...any) {
	fmt.Fprintf(e.io.err, format+"\n", args...)
}
