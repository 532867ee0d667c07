package controller

import (
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StatusPatch is a merge patch that makes the status of owner equal to status. The
// fields named are set to null where the JSON of status leaves them out, for a
// merge patch keeps what it does not name. It carries no resource version: a
// controller is the only writer of its kind's status, and a conflict with a writer
// of the spec would only cost another round.
func StatusPatch(owner metav1.Object, status any, fields ...string) ([]byte, error) {
	b, err := json.Marshal(status)
	if err != nil {
		return nil, fmt.Errorf("encode status of %s: %w", owner.GetName(), err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("encode status of %s: %w", owner.GetName(), err)
	}
	for _, f := range fields {
		if _, ok := m[f]; !ok {
			m[f] = nil
		}
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{"uid": owner.GetUID()}, "status": m})
}
