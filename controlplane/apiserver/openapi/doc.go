// Package openapi holds the generated OpenAPI definitions of the kinds that the
// API server serves. They describe the API to kubectl, and server-side apply
// merges by them.
//
// To generate them anew after a change of the kinds, install openapi-gen at the
// version of k8s.io/kube-openapi in go.mod and run go generate here:
//
//	go install k8s.io/kube-openapi/cmd/openapi-gen@v0.0.0-20260721132016-d427ff9ee9ad
//
// The same run writes api/v1alpha1/zz_generated.model_name.go.
package openapi

//go:generate sh generate.sh
