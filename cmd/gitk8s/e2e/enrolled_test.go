package e2e

import (
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// nodeDir is the folder of a worker on this machine.
func (m *machine) nodeDir(node string) string { return filepath.Join(m.dataDir, "nodes", node) }

// enroll writes the files of a worker on this machine, with its addresses or those given,
// and settings in its configuration. The disk is other tests', too: without a setting
// nothing is evicted.
func (m *machine) enroll(t *testing.T, server *cluster, node string, settings map[string]string, ips ...netip.Addr) {
	t.Helper()
	if len(ips) == 0 {
		ips = []netip.Addr{m.ip}
	}
	var list []string
	for _, ip := range ips {
		list = append(list, ip.String())
	}
	server.ok(t, "server", "enroll", node, strings.Join(list, ","), "--out", m.nodeDir(node))
	all := map[string]string{"eviction-hard": ""}
	maps.Copy(all, settings)
	m.configure(t, node, all)
}

// configure changes settings in the configuration of a worker that is enrolled.
func (m *machine) configure(t *testing.T, node string, settings map[string]string) {
	t.Helper()
	file := filepath.Join(m.nodeDir(node), "config.yaml")
	b, err := os.ReadFile(file)
	values := map[string]string{}
	if err == nil {
		err = yaml.Unmarshal(b, &values)
	}
	maps.Copy(values, settings)
	b, marshalErr := yaml.Marshal(values)
	if err := errors.Join(err, marshalErr, os.WriteFile(file, b, 0o600)); err != nil {
		t.Fatal(err)
	}
}

// startWorker starts one that is enrolled.
func (m *machine) startWorker(t *testing.T, node string) {
	t.Helper()
	p, err := m.launch(m.bin, "agent", "--node-dir", m.nodeDir(node), "--log-level", "info")
	if err != nil {
		t.Fatal(err)
	}
	m.worker = p
}

// startWorkers starts those that are enrolled, by name, and waits until they are Ready.
func startWorkers(t *testing.T, server *cluster, workers map[string]*machine) {
	t.Helper()
	for name, m := range workers {
		m.startWorker(t, name)
	}
	for name := range workers {
		await(t, server, nodesGVR, "", name, "the node is Ready", nodeReady)
	}
}
