package deployment

import (
	"encoding/json"

	appsv1 "k8s.io/api/apps/v1"
)

// statusPatch is a merge patch that makes the status equal to s, zeroes included.
func statusPatch(d *appsv1.Deployment, s appsv1.DeploymentStatus) ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	status := map[string]any{}
	if err := json.Unmarshal(b, &status); err != nil {
		return nil, err
	}
	// Numbers at zero are left out of the JSON; null removes what the server has.
	for _, field := range []string{"replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "unavailableReplicas", "terminatingReplicas", "conditions"} {
		if _, ok := status[field]; !ok {
			status[field] = nil
		}
	}
	return json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": d.UID},
		"status":   status,
	})
}
