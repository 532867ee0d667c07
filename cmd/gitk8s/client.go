package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

type (
	dynamicClient = dynamic.Interface
	application   = v1alpha1.Application
)

func unstructuredOf(m map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: m}
}

func isAlreadyExists(err error) bool { return apierrors.IsAlreadyExists(err) }

// kubeconfigPath is the kubeconfig in use: --kubeconfig, $KUBECONFIG, or the data
// directory's.
func (e *env) kubeconfigPath() (string, error) {
	if p := e.v.GetString("kubeconfig"); p != "" {
		return p, nil
	}
	own := filepath.Join(e.v.GetString("data-dir"), "admin.kubeconfig")
	if _, err := os.Stat(own); err == nil {
		return own, nil
	}
	if p := os.Getenv("KUBECONFIG"); p != "" {
		return p, nil
	}
	return "", fmt.Errorf("no cluster found: %s does not exist; is `gitk8s up` running, with another --data-dir? --kubeconfig names a cluster elsewhere", own)
}

func (e *env) restConfig() (*rest.Config, error) {
	path, err := e.kubeconfigPath()
	if err != nil {
		return nil, err
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", path, err)
	}
	cfg.QPS, cfg.Burst = -1, -1
	return cfg, nil
}

func (e *env) clientset() (kubernetes.Interface, error) {
	cfg, err := e.restConfig()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(cfg)
}

func (e *env) dynamic() (dynamic.Interface, error) {
	cfg, err := e.restConfig()
	if err != nil {
		return nil, err
	}
	return dynamic.NewForConfig(cfg)
}

// hint adds to an error what a person can do about it.
func hint(err error) error {
	var opErr *net.OpError
	if errors.As(err, &opErr) {
		return fmt.Errorf("%w; is `gitk8s up` running?", err)
	}
	return err
}

// namespaceFlag is the namespace that a command works in.
func (e *env) namespace() string {
	if ns := e.v.GetString("namespace"); ns != "" {
		return ns
	}
	return metav1.NamespaceDefault
}

// application returns an Application; not finding it is an error.
func (e *env) application(ctx context.Context, d dynamic.Interface, name string) (*application, error) {
	app, err := getApplication(ctx, d, e.namespace(), name)
	if err != nil {
		return nil, hint(err)
	}
	if app == nil {
		return nil, fmt.Errorf("application %s/%s does not exist; `gitk8s app list` shows those that do, `gitk8s app create` makes one", e.namespace(), name)
	}
	return app, nil
}

func decode[T any](u *unstructured.Unstructured) (*T, error) {
	v := new(T)
	return v, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, v)
}

// print writes a value in the format of -o: json, yaml, or as table does it.
func (e *env) print(format string, v any, table func(w io.Writer) error) error {
	switch format {
	case "", "table":
		return table(e.io.out)
	case "json":
		enc := json.NewEncoder(e.io.out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = e.io.out.Write(b)
		return err
	}
	return usageError("-o %s: the formats are table, json and yaml", format)
}

// info reads what the running server published.
func (e *env) info() (Info, error) {
	var info Info
	file := filepath.Join(e.v.GetString("data-dir"), "info.json")
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return info, fmt.Errorf("%s does not exist; is `gitk8s up` running, with another --data-dir?", file)
	}
	if err != nil {
		return info, err
	}
	return info, json.Unmarshal(b, &info)
}
