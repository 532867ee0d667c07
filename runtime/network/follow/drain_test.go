package follow

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func TestDrain(t *testing.T) {
	endpoint := func(node, pod string, ready, terminating *bool) discoveryv1.Endpoint {
		return discoveryv1.Endpoint{
			NodeName: &node, TargetRef: &corev1.ObjectReference{Kind: "Pod", UID: types.UID(pod)},
			Conditions: discoveryv1.EndpointConditions{Ready: ready, Terminating: terminating},
		}
	}
	yes, no := ptr.To(true), ptr.To(false)
	at := func(endpoints ...discoveryv1.Endpoint) []*discoveryv1.EndpointSlice {
		return []*discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.1"}}}}, {Endpoints: endpoints}}
	}
	for name, c := range map[string]struct {
		before, after []*discoveryv1.EndpointSlice
		took, want    time.Duration // until it is so, and until the pod may end
	}{
		"nothing known":           {nil, nil, time.Second, 0},
		"not of a service":        {at(endpoint("here", "other", yes, no)), nil, time.Second, 0},
		"of another node":         {at(endpoint("there", "pod", yes, no)), nil, time.Second, 0},
		"not ready":               {at(endpoint("here", "pod", no, no)), nil, time.Second, 0},
		"ends already":            {at(endpoint("here", "pod", no, yes)), nil, time.Second, 0},
		"ends, always to be told": {at(endpoint("here", "pod", yes, yes)), nil, time.Second, 0}, // publishNotReadyAddresses
		"gone":                    {at(endpoint("here", "pod", yes, nil)), at(), elsewhere / 2, elsewhere/2 + elsewhere},
		"gone, all are busy":      {at(endpoint("here", "pod", yes, nil)), at(), 2 * elsewhere, 4 * elsewhere},
		"ready by default, ends":  {at(endpoint("here", "pod", nil, nil)), at(endpoint("here", "pod", no, yes)), elsewhere, 2 * elsewhere},
		"others change":           {at(endpoint("here", "pod", yes, no)), at(endpoint("here", "pod", yes, no), endpoint("here", "other", yes, no)), time.Second, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := &Drain{}
				d.applied("here", c.before)
				time.AfterFunc(c.took, func() { d.applied("here", c.after) })
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				began := time.Now()
				d.Wait(ctx, "pod")
				if got := time.Since(began); got != c.want {
					t.Errorf("%s, want %s", got, c.want)
				}
				time.Sleep(time.Second) // the change that was not waited for
			})
		})
	}
}
