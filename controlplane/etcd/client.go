package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func dial(ctx context.Context, cfg Config) (*Server, error) {
	tlsConfig, err := clientTLS(cfg)
	if err != nil {
		return nil, err
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            cfg.Endpoints,
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    30 * time.Second,
		DialKeepAliveTimeout: 10 * time.Second,
		TLS:                  tlsConfig,
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd: open a client for %v: %w", cfg.Endpoints, err)
	}
	limited, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	over, fail := context.WithCancelCause(limited)
	defer fail(nil)
	if tlsConfig != nil {
		// The client goes on trying where waiting cannot help, and keeps why to itself.
		go func() {
			if err := refused(over, cfg.Endpoints, tlsConfig); err != nil {
				fail(err)
			}
		}()
	}
	if _, err := client.Get(over, "health"); err != nil {
		_ = client.Close()
		if cause := context.Cause(over); cause != nil && limited.Err() == nil {
			return nil, fmt.Errorf("etcd: %w; check --etcd-cafile, --etcd-certfile and --etcd-keyfile", cause)
		}
		return nil, fmt.Errorf("etcd: no answer from %v; check the endpoints and certificates: %w", cfg.Endpoints, err)
	}
	return &Server{client: client, errs: make(chan error), closed: make(chan struct{})}, nil
}

func clientTLS(cfg Config) (*tls.Config, error) {
	if cfg.CAFile == "" && cfg.CertFile == "" {
		return nil, nil
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: read the CA: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("etcd: no certificate in %s", cfg.CAFile)
		}
	}
	if cfg.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(cfg.CertFile, cfg.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("etcd: read the client certificate: %w", err)
		}
		out.Certificates = []tls.Certificate{pair}
	}
	return out, nil
}

// refused shakes hands with every endpoint and returns why, if all of them were
// reached and either side turned down the other's certificate.
func refused(ctx context.Context, endpoints []string, config *tls.Config) error {
	var errs []error
	for _, e := range endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "https" {
			return nil
		}
		err = handshake(ctx, u.Host, config)
		if !isRefusal(err) {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s refused: %w", e, err))
	}
	return errors.Join(errs...)
}

// handshake also waits for the first byte: only then has a server of TLS 1.3 said
// what it thinks of the client's certificate.
func handshake(ctx context.Context, address string, config *tls.Config) error {
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// handshakeTimeout bounds the wait for a server's verdict.
const handshakeTimeout = 5 * time.Second

func isRefusal(err error) bool {
	var verification *tls.CertificateVerificationError
	var alert tls.AlertError
	var remote *net.OpError
	return errors.As(err, &verification) || errors.As(err, &alert) || (errors.As(err, &remote) && remote.Op == "remote error")
}
