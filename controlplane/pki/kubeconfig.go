package pki

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Kubeconfig returns a kubeconfig file, with everything embedded, that calls
// server with the certificate of pair.
func (ca *CA) Kubeconfig(server, user string, pair Pair) ([]byte, error) {
	const cluster = "gitk8s"
	name := user + "@" + cluster
	config := clientcmdapi.NewConfig()
	config.Clusters[cluster] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: ca.certPEM}
	config.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: pair.CertPEM, ClientKeyData: pair.KeyPEM}
	config.Contexts[name] = &clientcmdapi.Context{Cluster: cluster, AuthInfo: user}
	config.CurrentContext = name
	out, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("pki: write the kubeconfig of %s: %w", user, err)
	}
	return out, nil
}

// WriteKubeconfig writes Kubeconfig's result to a file of mode 0600.
func (ca *CA) WriteKubeconfig(path, server, user string, pair Pair) error {
	data, err := ca.Kubeconfig(server, user, pair)
	if err != nil {
		return err
	}
	return WriteFile(path, data)
}

// RESTConfig returns the client configuration that the kubeconfig would give.
func (ca *CA) RESTConfig(server string, pair Pair) *rest.Config {
	return &rest.Config{
		Host: server,
		TLSClientConfig: rest.TLSClientConfig{
			CAData: ca.certPEM, CertData: pair.CertPEM, KeyData: pair.KeyPEM,
		},
	}
}
