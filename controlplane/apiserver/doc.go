// Package apiserver serves the Kubernetes API of gitk8s: its kinds with their
// defaults, validation and columns, authentication and authorization, stored in
// etcd. It is built on k8s.io/apiserver, the library under kube-apiserver.
//
// The kinds stand in one table (resources.go); a generic strategy and store serve
// each row. What is particular to kinds is in subpackages of pure functions:
// defaults, validation, printers and authz.
//
// In comes an etcd client, a certificate authority and listeners; out comes a
// server, and client configurations for components in the same process, which
// reach it through memory and otherwise like anybody else. Controllers, scheduler
// and reconciler do not import this package.
package apiserver
