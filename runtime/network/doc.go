// Package network makes the cluster's network on one machine: the namespaces of the
// nodes and the bridge between them (Topology), the pods' links and addresses
// (PodNetwork), the ways between nodes (Mesh), and the services' addresses
// (Proxy).
//
// Everything lives in network namespaces of its own; the machine's namespace is not
// touched. What is made is found again by name, so that every call may be repeated
// and a process that was killed leaves nothing that can't be removed.
package network
