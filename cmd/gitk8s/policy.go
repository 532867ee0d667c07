package main

import (
	"errors"

	"gitk8s.dev/gitk8s/runtime/network"
	"gitk8s.dev/gitk8s/runtime/network/policy"
)

// openPolicies prepares the enforcement of NetworkPolicies in the worker's own network
// namespace.
func (w *worker) openPolicies() (err error) {
	if w.enforcer, err = policy.NewEnforcer("", w.ranges.HasIPv6()); err != nil {
		return err
	}
	w.policies = policy.NewFollower(w.client, w.name, w.enforcer)
	return nil
}

// removePolicies ends the enforcement of NetworkPolicies in this network namespace.
func removePolicies(ranges network.Ranges) error {
	e, err := policy.NewEnforcer("", ranges.HasIPv6())
	if err != nil {
		return err
	}
	return errors.Join(e.Remove(), e.Close())
}
