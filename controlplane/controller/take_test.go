package controller

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestTake(t *testing.T) {
	pod := func(name string) *corev1.Pod { return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	owner := func(uid types.UID, deleted bool) *corev1.Pod {
		o := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "owner", UID: uid}}
		if deleted {
			o.DeletionTimestamp = &metav1.Time{}
		}
		return o
	}
	gone := apierrors.NewNotFound(corev1.Resource("pods"), "owner")
	for _, c := range []struct {
		name       string
		live       *corev1.Pod
		liveErr    error
		patchErr   error
		want, asks string
		fails      bool
	}{
		{name: "adopts and releases", live: owner("o", false), want: "mine orphan", asks: "release:left adopt:orphan"},
		{name: "not for an owner that is gone", liveErr: gone, want: "mine", asks: "release:left"},
		{name: "nor for one that is being deleted", live: owner("o", true), want: "mine", asks: "release:left"},
		{name: "nor for another of its name", live: owner("p", false), want: "mine", asks: "release:left"},
		{name: "nor without an answer", liveErr: errors.New("no answer"), fails: true, asks: "release:left"},
		{name: "what is gone is not adopted", live: owner("o", false), patchErr: gone, want: "mine", asks: "release:left adopt:orphan"},
		{name: "a failure is told", live: owner("o", false), patchErr: errors.New("no answer"), fails: true, asks: "release:left"},
	} {
		var asks []string
		claims := Claims[*corev1.Pod]{Owned: []*corev1.Pod{pod("mine")}, Adopt: []*corev1.Pod{pod("orphan")}, Release: []*corev1.Pod{pod("left")}}
		got, err := Take(t.Context(), owner("o", false), corev1.SchemeGroupVersion.WithKind("Pod"), claims,
			func(context.Context) (metav1.Object, error) { return c.live, c.liveErr },
			func(_ context.Context, p *corev1.Pod, body []byte) error {
				verb := "adopt:"
				if strings.Contains(string(body), `"$patch":"delete"`) {
					verb = "release:"
				}
				asks = append(asks, verb+p.Name)
				return c.patchErr
			})
		var names []string
		for _, p := range got {
			names = append(names, p.Name)
		}
		if strings.Join(names, " ") != c.want || (err != nil) != c.fails || strings.Join(asks, " ") != c.asks {
			t.Errorf("%s: owns %q after %q, error %v", c.name, names, asks, err)
		}
	}
}

func TestSlowStart(t *testing.T) {
	var calls atomic.Int32
	tried, err := SlowStart(10, func(i int) error {
		calls.Add(1)
		if i == 4 {
			return errors.New("refused")
		}
		return nil
	})
	if tried != 7 || err == nil || calls.Load() != 7 {
		t.Errorf("after a failure in the third batch: %d tried, %d calls, %v", tried, calls.Load(), err)
	}
	seen := make([]bool, 10)
	if tried, err := SlowStart(10, func(i int) error { seen[i] = true; return nil }); tried != 10 || err != nil || slices.Contains(seen, false) {
		t.Errorf("%d tried, %v, %v", tried, seen, err)
	}
}
