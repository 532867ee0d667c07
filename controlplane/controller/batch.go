package controller

import (
	"errors"
	"sync"
)

// atOnce bounds the requests that one sync has under way.
const atOnce = 16

// Each calls f for 0..n-1 side by side and returns all errors.
func Each(n int, f func(i int) error) error {
	errs := make([]error, n)
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = f(i)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// SlowStart calls f for 0..n-1 in batches of 1, 2, 4, … and stops after the first
// batch with an error: when the API refuses the first of many objects (quota, a bad
// template), it is not asked hundreds of times. It returns how many were tried.
func SlowStart(n int, f func(i int) error) (tried int, err error) {
	for batch := 1; tried < n; batch *= 2 {
		size := min(batch, n-tried)
		err := Each(size, func(i int) error { return f(tried + i) })
		tried += size
		if err != nil {
			return tried, err
		}
	}
	return tried, nil
}
