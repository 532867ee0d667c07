package e2e

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"
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

// age gives a worker that is enrolled a client certificate that ends after a time.
func (m *machine) age(t *testing.T, server *cluster, node string, left time.Duration) {
	t.Helper()
	authority := filepath.Join(server.dataDir, "pki", "ca")
	ca, err := tls.LoadX509KeyPair(authority+".crt", authority+".key")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(m.nodeDir(node), "kubeconfig")
	config, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		block, _ := pem.Decode(user.ClientCertificateData)
		old, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		old.NotAfter = time.Now().Add(left)
		der, err := x509.CreateCertificate(rand.Reader, old, ca.Leaf, old.PublicKey, ca.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		user.ClientCertificateData = pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: der})
	}
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
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
