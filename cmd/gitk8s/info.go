package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

func newInfo(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "info",
		Short: "Print the kubeconfig's path and where API, Git server and registry are",
		Args:  exactArgs(0),
		RunE: func(*cobra.Command, []string) error {
			info, err := e.info()
			if err != nil {
				return err
			}
			return e.print(e.v.GetString("output"), info, func(w io.Writer) error {
				t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
				for _, row := range [][2]string{
					{"kubeconfig", info.Kubeconfig}, {"api", info.API}, {"git", info.Git}, {"registry", info.Registry},
					{"docker config", info.DockerConfig}, {"metrics", info.Metrics}, {"ingress", info.IngressHTTP}, {"ingress with TLS", info.IngressHTTPS},
					{"pods", info.ClusterCIDR}, {"services", info.ServiceCIDR},
				} {
					if row[1] == "" {
						continue
					}
					fmt.Fprintf(t, "%s\t%s\n", row[0], row[1])
				}
				return t.Flush()
			})
		},
	}
	outputFlag(cmd)
	return cmd
}

func outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringP("output", "o", "table", "format: table, json or yaml")
}

func namespaceFlag(cmd *cobra.Command) {
	cmd.Flags().StringP("namespace", "n", "default", "namespace of the application")
}
