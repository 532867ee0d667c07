// Package registry deals in OCI images: what a reference means (Resolver), the
// images unpacked on a worker's disk (Store), and the embedded registry that any
// OCI client can push to (Server).
//
// Everything on disk is content-addressed and verified by digest before it gets
// its name. Registries, manifests and layers are hostile input: sizes, counts and
// paths are bounded.
package registry
