package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

func newEnroll(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "enroll NAME IP[,IP]",
		Short: "Write the files with which a worker on another machine joins",
		Long: `Write the files with which a worker on another machine joins this server: its
identity, its serving certificate, the cluster's CA, the credentials for images
and its configuration. Where the cluster has two families of addresses the worker
needs one of each. Copy the folder to the other machine and run there

  gitk8s agent --node-dir FOLDER`,
		Args: exactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			info, err := e.info()
			if err != nil {
				return err
			}
			ranges, err := parseRanges(cmp.Or(info.ClusterCIDR, defaultPods), cmp.Or(info.ServiceCIDR, defaultServices), "")
			if err != nil {
				return err
			}
			ips, err := parseNodeIPs(args[1], ranges)
			if err != nil {
				return usageError("%w", err)
			}
			server := e.v.GetString("server")
			if server == "" {
				server = info.API
			}
			ca, err := pki.OpenCA(filepath.Join(info.DataDir, "pki"))
			if err != nil {
				return err
			}
			dir := e.v.GetString("out")
			if dir == "" {
				dir = args[0]
			}
			if err := writeWorkerFiles(ca, dir, args[0], ips, server); err != nil {
				return err
			}
			if err := writeWorkerConfig(info, dir, args[0], ips); err != nil {
				return err
			}
			if loopback(server) {
				e.say("note: %s is reached from this machine alone; for a worker elsewhere start the server with --listen, or enroll with --server", server)
			}
			e.say("wrote %s; it holds a private key: copy it over a secure channel and delete it here", dir)
			return nil
		},
	}
	cmd.Flags().String("server", "", "URL at which the worker reaches the API (default: as in `gitk8s info`)")
	cmd.Flags().String("out", "", "folder to write (default: NAME)")
	return cmd
}

// writeWorkerFiles writes the files with which a worker calls and is called.
func writeWorkerFiles(ca *pki.CA, dir, name string, ips []netip.Addr, server string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	identity, err := ca.Ensure(pki.NodeClient(name))
	if err != nil {
		return err
	}
	serving, err := ca.Ensure(pki.NodeServer(name, strings.Split(joinAddrs(ips), ",")...))
	if err != nil {
		return err
	}
	if err := errors.Join(
		ca.WriteKubeconfig(filepath.Join(dir, workerKubeconfig), server, pki.UserNodePrefix+name, identity),
		pki.WriteFile(filepath.Join(dir, workerCert), serving.CertPEM),
		pki.WriteFile(filepath.Join(dir, workerKey), serving.KeyPEM),
		pki.WriteFile(filepath.Join(dir, workerCA), ca.CertPEM()),
	); err != nil {
		return fmt.Errorf("write the files of worker %s: %w", name, err)
	}
	return nil
}

// writeWorkerConfig writes what a worker elsewhere would otherwise need as flags.
func writeWorkerConfig(info Info, dir, name string, ips []netip.Addr) error {
	token, err := os.ReadFile(filepath.Join(info.DataDir, "token"))
	if err != nil {
		return err
	}
	config, err := yaml.Marshal(map[string]string{
		"name": name, "node-ip": joinAddrs(ips), "registry": info.Registry, podsFlag: cmp.Or(info.ClusterCIDR, defaultPods), servicesFlag: cmp.Or(info.ServiceCIDR, defaultServices),
	})
	if err != nil {
		return err
	}
	return errors.Join(
		pki.WriteFile(filepath.Join(dir, workerToken), []byte(pullToken(string(token)))),
		pki.WriteFile(filepath.Join(dir, workerConfig), config),
	)
}

// loopback says whether a URL is of this machine alone.
func loopback(server string) bool {
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(u.Hostname())
	return u.Hostname() == "localhost" || (err == nil && ip.IsLoopback())
}
