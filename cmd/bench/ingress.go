package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// fronts puts an Ingress in front of the service "served", and beside it, where the
// machine has it, nginx as a reverse proxy in the first worker's network.
func (c *cluster) fronts(ctx context.Context, podIP string) (ways []way, stop func(), err error) {
	cert, key, err := selfSigned()
	if err != nil {
		return nil, nil, err
	}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "served"}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key}}
	if _, err := c.CoreV1().Secrets(namespace).Create(ctx, secret, metav1.CreateOptions{}); err != nil {
		return nil, nil, err
	}
	ing := &networkingv1.Ingress{ObjectMeta: metav1.ObjectMeta{Name: "served", Annotations: map[string]string{"ingress.gitk8s.dev/ssl-redirect": "false"}}, Spec: networkingv1.IngressSpec{
		TLS: []networkingv1.IngressTLS{{SecretName: "served"}},
		Rules: []networkingv1.IngressRule{{IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{Paths: []networkingv1.HTTPIngressPath{{
			Path: "/", PathType: ptr.To(networkingv1.PathTypePrefix),
			Backend: networkingv1.IngressBackend{Service: &networkingv1.IngressServiceBackend{Name: "served", Port: networkingv1.ServiceBackendPort{Number: 8080}}},
		}}}}}},
	}}
	if _, err := c.NetworkingV1().Ingresses(namespace).Create(ctx, ing, metav1.CreateOptions{}); err != nil {
		return nil, nil, err
	}
	stop = func() {
		_ = c.NetworkingV1().Ingresses(namespace).Delete(ctx, "served", metav1.DeleteOptions{})
		_ = c.CoreV1().Secrets(namespace).Delete(ctx, "served", metav1.DeleteOptions{})
	}
	node := floorRanges.Node(1)[0].String()
	ways = []way{
		{"the node's Ingress", net.JoinHostPort(node, "80"), false},
		{"the node's Ingress with TLS", net.JoinHostPort(node, "443"), true},
	}
	if _, err := exec.LookPath("nginx"); err == nil {
		end, err := c.nginx(podIP, cert, key)
		if err != nil {
			stop()
			return nil, nil, err
		}
		remove := stop
		stop = func() { end(); remove() }
		ways = append(ways, way{"nginx in its place", net.JoinHostPort(node, "9080"), false}, way{"nginx in its place with TLS", net.JoinHostPort(node, "9443"), true})
	}
	_, err = c.onWorker(func() (sample, error) {
		var errs []error
		for _, w := range ways {
			errs = append(errs, answers(ctx, w.address, true))
		}
		return nil, errors.Join(errs...)
	})
	if err != nil {
		stop()
		return nil, nil, err
	}
	return ways, stop, nil
}

// nginxConf has the pod told the same of the client as by the Ingress: to read each field takes
// it some time.
const nginxConf = `daemon off; worker_processes auto; pid %[1]s/pid; error_log %[1]s/error.log; events { worker_connections 1024; }
http {
	access_log off;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	keepalive_requests 1000000;
	upstream pod { server %[2]s:8080; keepalive 128; keepalive_requests 1000000; }
	server {
		listen 9080; listen 9443 ssl;
		ssl_certificate %[1]s/cert; ssl_certificate_key %[1]s/key; ssl_protocols TLSv1.3;
		location / {
			proxy_pass http://pod; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Real-Ip $remote_addr;
			proxy_set_header X-Forwarded-Host $http_host; proxy_set_header X-Forwarded-Port $server_port;
		}
	}
}
`

// nginx starts the reverse proxy that is compared with.
func (c *cluster) nginx(podIP string, cert, key []byte) (end func(), err error) {
	dir, err := os.MkdirTemp("", "gitk8s-bench-nginx-")
	if err != nil {
		return nil, err
	}
	for name, content := range map[string][]byte{"cert": cert, "key": key, "conf": fmt.Appendf(nil, nginxConf, dir, podIP)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, errors.Join(err, os.RemoveAll(dir))
		}
	}
	cmd := exec.Command("nsenter", "--net="+c.workerNetNS(), "nginx", "-c", filepath.Join(dir, "conf"))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}, nil
}

// selfSigned makes a certificate and its key, in PEM.
func selfSigned() (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"bench.example.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		return nil, nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), nil
}
