package main

import (
	"context"
	"log/slog"

	corev1 "k8s.io/api/core/v1"
	utilruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// events records in the API under a component's name.
func (c *controlPlane) events(ctx context.Context, k kubernetes.Interface, component string) record.EventRecorder {
	return recorder(ctx, k, component, "")
}

// recorder records in the API under the name of a component, of a node where it is
// one's.
func recorder(ctx context.Context, k kubernetes.Interface, component, node string) record.EventRecorder {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: k.CoreV1().Events("")})
	s := utilruntime.NewScheme()
	for _, add := range []func(*utilruntime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			slog.Error("scheme", "error", err) // two types under one name: a mistake in this program
		}
	}
	return b.NewRecorder(s, corev1.EventSource{Component: component, Host: node})
}
