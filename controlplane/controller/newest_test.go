package controller

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestNewest(t *testing.T) {
	at := func(uid types.UID, version string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: uid, ResourceVersion: version}}
	}
	var n Newest[*corev1.Pod]
	for _, c := range []struct {
		wrote, cached, want string
	}{
		{cached: "7", want: "7"},
		{wrote: "12", cached: "9", want: "12"},
		{cached: "11", want: "12"},
		{cached: "12", want: "12"},
		{cached: "13", want: "13"},
		{wrote: "20", cached: "13", want: "20"},
	} {
		if c.wrote != "" {
			n.Wrote("k", at("a", c.wrote))
		}
		if got := n.Of("k", at("a", c.cached)).ResourceVersion; got != c.want {
			t.Errorf("with %s in the cache: %s, want %s", c.cached, got, c.want)
		}
	}
	if got := n.Of("k", at("b", "19")); got.UID != "b" {
		t.Error("another object of the same name is not ours")
	}
	n.Wrote("k", at("a", "20"))
	n.Forget("k")
	if got := n.Of("k", at("a", "13")).ResourceVersion; got != "13" {
		t.Errorf("forgotten, and still %s", got)
	}
}
