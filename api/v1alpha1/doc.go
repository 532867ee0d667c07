// Package v1alpha1 holds the gitk8s.dev/v1alpha1 API: Application, which binds
// a path of a Git repository to the cluster, and Revision, the record of one
// commit of an Application that was deployed.
//
// The types are plain data. Who writes which field: people and the command line
// write Application.spec and Application.operation; the reconciler alone writes
// both statuses and creates Revisions.
//
// +k8s:deepcopy-gen=package
// +k8s:openapi-gen=true
// +k8s:openapi-model-package=dev.gitk8s.api.v1alpha1
// +groupName=gitk8s.dev
package v1alpha1
