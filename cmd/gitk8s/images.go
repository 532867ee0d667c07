package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-base/metrics/legacyregistry"

	"gitk8s.dev/gitk8s/controlplane/pki"
	"gitk8s.dev/gitk8s/registry"
	"gitk8s.dev/gitk8s/runtime/network/ingress"
)

// localAuth are the credentials for the embedded registry.
func localAuth(token string) authn.Authenticator {
	return &authn.Basic{Username: gitUser, Password: token}
}

// imageResolver pins tags with the credentials that the pods will pull with.
type imageResolver struct {
	remote       *registry.Remote
	secrets      kubernetes.Interface
	dockerConfig string
}

// Resolve implements reconciler.Resolver.
func (r *imageResolver) Resolve(ctx context.Context, namespace string, pullSecrets []string, reference string) (string, error) {
	var keys registry.Credentials
	for _, name := range pullSecrets {
		s, err := r.secrets.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			continue // the image may be public, as for a worker
		}
		if err != nil {
			return "", fmt.Errorf("imagePullSecret %s/%s: %w", namespace, name, err)
		}
		var found registry.Credentials
		switch s.Type {
		case corev1.SecretTypeDockerConfigJson:
			found, err = registry.ParseDockerConfig(s.Data[corev1.DockerConfigJsonKey])
		case corev1.SecretTypeDockercfg:
			found, err = registry.ParseDockercfg(s.Data[corev1.DockerConfigKey])
		default:
			err = fmt.Errorf("is of type %q", s.Type)
		}
		if err != nil {
			return "", fmt.Errorf("imagePullSecret %s/%s: %w", namespace, name, err)
		}
		keys = append(keys, found...)
	}
	if r.dockerConfig != "" {
		b, err := os.ReadFile(r.dockerConfig)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if err == nil {
			found, err := registry.ParseDockerConfig(b)
			if err != nil {
				return "", fmt.Errorf("%s: %w", r.dockerConfig, err)
			}
			keys = append(keys, found...)
		}
	}
	return r.remote.Resolve(ctx, reference, keys)
}

// writeDockerConfig writes the file with which any OCI client may push to the
// embedded registry.
func writeDockerConfig(file, address, token string) error {
	b, err := json.MarshalIndent(map[string]any{"auths": map[string]any{
		address: map[string]string{"username": gitUser, "password": token, "auth": basic(token)},
	}}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return pki.WriteFile(file, append(b, '\n'))
}

// metricsHandler serves the process' metrics, and those of Ingresses where it serves
// them, to who has the token.
func metricsHandler(token string, front *ingress.Proxy) http.Handler {
	h := promhttp.HandlerFor(legacyregistry.DefaultGatherer, promhttp.HandlerOpts{DisableCompression: true}) // more is written after it
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !authorized(r, token) {
			w.Header().Set("WWW-Authenticate", `Basic realm="gitk8s"`)
			http.Error(w, "credentials are needed", http.StatusUnauthorized)
			return
		}
		if strings.TrimSuffix(r.URL.Path, "/") != "/metrics" {
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r)
		if front != nil {
			_ = front.WriteMetrics(w) // who does not read on does not want them
		}
	})
}
