package apiserver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"gitk8s.dev/gitk8s/controlplane/pki"
)

// shutdownTimeout bounds how long a stop waits for requests under way.
const shutdownTimeout = 5 * time.Second

// Config is what a Server needs.
type Config struct {
	// Etcd is the store, of package controlplane/etcd. The caller closes it after
	// Run has returned.
	Etcd *clientv3.Client
	// CA is the cluster's authority: it verifies clients and workers.
	CA *pki.CA
	// ServingCert is the server's certificate.
	ServingCert pki.Pair
	// WorkerClientCert is shown to the workers' HTTPS servers, of
	// pki.UserAPIServer.
	WorkerClientCert pki.Pair
	// Listeners are served all alike. The first one's address is the server's own.
	// Run closes them.
	Listeners []net.Listener
	// ServiceCIDRs are the ranges of services' addresses: one, or one of each family, of
	// which the first is that of services that ask for none. Its first address is the
	// API's.
	ServiceCIDRs []netip.Prefix
	// AdvertiseAddress and AdvertisePort are where pods and workers reach the
	// server; they make the endpoints of the service default/kubernetes. The first
	// listener's when empty.
	AdvertiseAddress string
	AdvertisePort    int
	// Replicated says that other servers may serve from the same store: the endpoints
	// of default/kubernetes are then those of all that live.
	Replicated bool
	// NodeDialer dials workers and pods, in the network that they are in. A plain
	// dialer when nil.
	NodeDialer func(ctx context.Context, network, address string) (net.Conn, error)
	// Room says why the store has no room for another object; nil if it always has.
	Room func() error
	// Now is the clock for printed ages and addresses; time.Now when nil.
	Now func() time.Time
}

// Validate says what is missing.
func (c *Config) Validate() error {
	switch {
	case c.Etcd == nil:
		return errors.New("apiserver: no etcd client")
	case c.CA == nil:
		return errors.New("apiserver: no certificate authority")
	case len(c.ServingCert.CertPEM) == 0 || len(c.ServingCert.KeyPEM) == 0:
		return errors.New("apiserver: no serving certificate")
	case len(c.WorkerClientCert.CertPEM) == 0 || len(c.WorkerClientCert.KeyPEM) == 0:
		return errors.New("apiserver: no client certificate for the workers")
	case len(c.Listeners) == 0:
		return errors.New("apiserver: no listener")
	case len(c.ServiceCIDRs) == 0:
		return errors.New("apiserver: no range of services' addresses")
	}
	return nil
}

// complete fills in what is empty.
func (c *Config) complete() error {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.NodeDialer == nil {
		c.NodeDialer = (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	if tcp, ok := c.Listeners[0].Addr().(*net.TCPAddr); ok {
		if c.AdvertiseAddress == "" {
			c.AdvertiseAddress = tcp.IP.String()
		}
		if c.AdvertisePort == 0 {
			c.AdvertisePort = tcp.Port
		}
	}
	if net.ParseIP(c.AdvertiseAddress) == nil || c.AdvertisePort == 0 {
		return errors.New("apiserver: no address and port to advertise")
	}
	return nil
}
