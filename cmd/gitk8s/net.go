package main

import "github.com/spf13/cobra"

func newNet(e *env) *cobra.Command {
	cmd := &cobra.Command{Use: "net", Short: "Ask about the network of pods: services, policies, and who reaches whom"}
	cmd.AddCommand(newNetServices(e), newNetPolicies(e), newNetTrace(e))
	return cmd
}
