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

	"gitk8s.dev/gitk8s/controlplane/pki"
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

// age gives a worker that is enrolled certificates that end at a time.
func (m *machine) age(t *testing.T, server *cluster, node string, end time.Time) {
	t.Helper()
	authority := filepath.Join(server.dataDir, "pki", "ca")
	ca, err := tls.LoadX509KeyPair(authority+".crt", authority+".key")
	if err != nil {
		t.Fatal(err)
	}
	aged := func(old *x509.Certificate) []byte {
		old.NotAfter = end
		der, err := x509.CreateCertificate(rand.Reader, old, ca.Leaf, old.PublicKey, ca.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	calling, serving := m.certificates(t, node)
	config, err := clientcmd.LoadFromFile(filepath.Join(m.nodeDir(node), "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.ClientCertificateData = aged(calling)
	}
	if err := errors.Join(
		clientcmd.WriteToFile(*config, filepath.Join(m.nodeDir(node), "kubeconfig")),
		os.WriteFile(filepath.Join(m.nodeDir(node), "server.crt"), aged(serving), 0o600),
	); err != nil {
		t.Fatal(err)
	}
}

// certificates are those in the files of a worker: that with which it calls, and its server's.
func (m *machine) certificates(t *testing.T, node string) (calling, serving *x509.Certificate) {
	t.Helper()
	config, err := clientcmd.LoadFromFile(filepath.Join(m.nodeDir(node), "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		if calling, err = pki.ParseCertificate(user.ClientCertificateData); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(filepath.Join(m.nodeDir(node), "server.crt"))
	if err == nil {
		serving, err = pki.ParseCertificate(b)
	}
	if err != nil {
		t.Fatal(err)
	}
	return calling, serving
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
