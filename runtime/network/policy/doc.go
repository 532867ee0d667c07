// Package policy enforces NetworkPolicies on a node.
//
// Compile turns policies, namespaces and pods into Rules, a pure function: for each
// pod of this node that a policy selects, the group that it belongs to, and for each
// group what may come in or go out. Enforcer lays them out as the elements of a few
// nftables maps and sets, which are changed one by one; Follower keeps them equal to what
// the API says.
//
// What a node sends to its own pods, and they to it, is never held back, and neither
// are the answers to a connection that was let through ("Network Policies"). A pod that
// a policy selects is held back from its first packet on: the worker asks before it
// starts the pod's containers. Of a pod that nothing is known of yet, as when the worker
// has started without the API, nothing is let through.
package policy
