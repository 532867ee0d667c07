package agent

import (
	"context"
	"fmt"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedv1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
)

// newRecorder returns a recorder whose events go to the API. Repeated ones become
// counts, and a flood about one object is cut off (client-go's correlator).
func newRecorder(ctx context.Context, client kubernetes.Interface, node string) (record.EventRecorder, record.EventBroadcaster) {
	b := record.NewBroadcaster(record.WithContext(ctx))
	b.StartRecordingToSink(&typedv1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	return b.NewRecorder(scheme.Scheme, v1.EventSource{Component: "kubelet", Host: node}), b
}

// event tells about the pod, or about one container of it. It may be called from
// any goroutine.
func (w *worker) event(kind, reason, message string, container ...string) {
	ref := &v1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: w.namespace, Name: w.name, UID: types.UID(w.uid)}
	if len(container) > 0 {
		list, ok := w.lists.Load(container[0])
		if !ok {
			list = "containers"
		}
		ref.FieldPath = fmt.Sprintf("spec.%s{%s}", list, container[0])
	}
	w.a.recorder.Event(ref, kind, reason, message)
}
