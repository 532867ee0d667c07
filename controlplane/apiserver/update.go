package apiserver

import (
	"context"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/storage"
	storeerrors "k8s.io/apiserver/pkg/storage/errors"
)

// guaranteedUpdate changes a stored object below the strategies, retrying when
// somebody else wrote in between.
func guaranteedUpdate(ctx context.Context, st *store, name string, pre *metav1.Preconditions, dryRun bool, change func(obj runtime.Object) error) (runtime.Object, error) {
	key, err := st.KeyFunc(ctx, name)
	if err != nil {
		return nil, err
	}
	preconditions := &storage.Preconditions{}
	if pre != nil {
		preconditions.UID, preconditions.ResourceVersion = pre.UID, pre.ResourceVersion
	}
	out := st.New()
	err = st.Storage.GuaranteedUpdate(ctx, key, out, false, preconditions, storage.SimpleUpdate(func(obj runtime.Object) (runtime.Object, error) {
		if err := change(obj); err != nil {
			return nil, err
		}
		return obj, nil
	}), dryRun, nil)
	if err != nil {
		return nil, storeerrors.InterpretUpdateError(err, st.DefaultQualifiedResource, name)
	}
	return out, nil
}
