package main

import (
	"context"
	"encoding/json"
	"errors"

	"k8s.io/client-go/kubernetes"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/policy"
)

// networkState is what a worker says of its node's kernel.
type networkState struct {
	Services []network.Installed `json:"services"`
	Policies policy.Installed    `json:"policies"`
}

// networkState reads it from the kernel.
func (w *worker) networkState() (any, error) {
	services, err := w.proxy.Installed()
	policies, err2 := w.enforcer.Installed()
	return networkState{services, policies}, errors.Join(err, err2)
}

// fetchNetworkState asks a node's worker.
func fetchNetworkState(ctx context.Context, client kubernetes.Interface, node string) (*networkState, error) {
	b, err := client.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix("network").DoRaw(ctx)
	if err != nil {
		return nil, err
	}
	out := &networkState{}
	return out, json.Unmarshal(b, out)
}
