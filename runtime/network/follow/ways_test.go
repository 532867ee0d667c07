package follow

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/runtime/network"
)

func node(name, podCIDR, ip string, age time.Duration, key string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.NewTime(time.Unix(1e9, 0).Add(-age)), Annotations: map[string]string{AnnotationWireGuardKey: key}},
		Spec:       corev1.NodeSpec{PodCIDR: podCIDR},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
			{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: ip}}},
	}
}

func TestPeers(t *testing.T) {
	const text = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	key, err := network.ParsePublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	got := peers([]*corev1.Node{
		node("young", "10.42.1.0/24", "192.0.2.1", time.Minute, text),
		node("b", "10.42.3.0/24", "192.0.2.3", time.Hour, "no key"),
		node("a", "10.42.2.0/24", "192.0.2.2", time.Hour, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
		node("without-pods", "", "192.0.2.4", time.Hour, ""),
		node("without-address", "10.42.5.0/24", "", time.Hour, ""),
	}, []*discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"192.0.2.9"}}, {Addresses: []string{"bad"}}}}})
	want := []network.Peer{
		{Name: "a", PodCIDR: netip.MustParsePrefix("10.42.2.0/24"), NodeIP: netip.MustParseAddr("192.0.2.2")},
		{Name: "b", PodCIDR: netip.MustParsePrefix("10.42.3.0/24"), NodeIP: netip.MustParseAddr("192.0.2.3")},
		{Name: "young", PodCIDR: netip.MustParsePrefix("10.42.1.0/24"), NodeIP: netip.MustParseAddr("192.0.2.1"), Key: key},
		{NodeIP: netip.MustParseAddr("192.0.2.9")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Each peer that is refused is told about once, and again when it has had one meanwhile.
func TestTellRefused(t *testing.T) {
	events := record.NewFakeRecorder(10)
	w := &ways{events: events, node: "me"}
	refusal := func(name string) network.Refusal {
		return network.Refusal{Peer: network.Peer{Name: name}, Reason: network.ReasonNotEncrypted}
	}
	a, b := refusal("a"), refusal("b")
	for _, step := range []struct {
		refused []network.Refusal
		want    int
	}{{nil, 0}, {[]network.Refusal{a}, 1}, {[]network.Refusal{a}, 0}, {[]network.Refusal{a, b}, 1}, {nil, 0}, {[]network.Refusal{b}, 1}} {
		w.tell(step.refused)
		if got := len(events.Events); got != step.want {
			t.Errorf("%v: %d events, want %d", step.refused, got, step.want)
		}
		for len(events.Events) > 0 {
			if text := <-events.Events; !strings.Contains(text, "PeerNotEncrypted") {
				t.Error(text)
			}
		}
	}
}
