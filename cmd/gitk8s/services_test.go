package main

import "testing"

func TestPoolOfUp(t *testing.T) {
	ranges, err := parseRanges(defaultPods, defaultServices, defaultNodesIPv4)
	if err != nil {
		t.Fatal(err)
	}
	for pool, ok := range map[string]bool{
		"":                        true,
		"10.41.0.240/28":          true,
		"10.41.0.211-10.41.0.254": true,
		"10.41.0.210":             false, // worker 200
		"10.41.0.1-10.41.0.9":     false,
		"192.0.2.0/24":            false,
		"x":                       false,
	} {
		if err := poolOfUp(Config{LoadBalancerPool: pool}, ranges); (err == nil) != ok {
			t.Errorf("%q: %v", pool, err)
		}
	}
}
