package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// storeFor is how long objects are created for one figure.
const storeFor = 3 * time.Second

// store measures how many objects the API takes.
func (b *bench) store(ctx context.Context, c *cluster) error {
	for _, clients := range []int{1, 16} {
		took, elapsed, err := c.create(ctx, clients)
		if err != nil {
			return err
		}
		kubernetes := map[int]string{1: "221/s, p50 4 ms", 16: "801/s, p50 18 ms"}[clients]
		b.add(row{
			what:       strings.TrimSuffix(fmt.Sprintf("ConfigMap CREATE, %d clients", clients), map[bool]string{true: "s"}[clients == 1]),
			figure:     fmt.Sprintf("%.0f/s, p50 %s", float64(len(took))/elapsed.Seconds(), show(took.at(0.5))),
			kubernetes: kubernetes,
		})
	}
	return nil
}

// create makes ConfigMaps with n clients at once, which share a connection as
// those of one program do.
func (c *cluster) create(ctx context.Context, n int) (sample, time.Duration, error) {
	took := make([]sample, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	began := time.Now()
	for i := range n {
		wg.Go(func() {
			for j := 0; time.Since(began) < storeFor; j++ {
				m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("bench-%d-%d-%d", n, i, j)}, Data: map[string]string{"key": "value"}}
				at := time.Now()
				if _, errs[i] = c.CoreV1().ConfigMaps(namespace).Create(ctx, m, metav1.CreateOptions{}); errs[i] != nil {
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	elapsed := time.Since(began)
	var all sample
	for _, s := range took {
		all = append(all, s...)
	}
	return all, elapsed, errors.Join(errs...)
}
