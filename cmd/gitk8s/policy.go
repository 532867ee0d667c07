package main

import (
	"errors"
	"net/netip"
	"slices"

	"gitk8s.dev/gitk8s/runtime/network/policy"
)

// openPolicies prepares the enforcement of NetworkPolicies in the worker's own network
// namespace.
func (w *worker) openPolicies() (err error) {
	ipv6 := slices.ContainsFunc(w.ranges.Pods, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if w.enforcer, err = policy.NewEnforcer("", ipv6); err != nil {
		return err
	}
	w.policies = policy.NewFollower(w.client, w.name, w.enforcer)
	return nil
}

// removePolicies ends the enforcement of NetworkPolicies in this network namespace.
func removePolicies() error {
	e, err := policy.NewEnforcer("", true)
	if err != nil {
		return err
	}
	return errors.Join(e.Remove(), e.Close())
}
