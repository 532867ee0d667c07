#!/bin/sh
# Generates zz_generated.openapi.go here and zz_generated.model_name.go in api/v1alpha1.
set -eu
cd "$(dirname "$0")/../../.."
header=$(mktemp)
trap 'rm -f "$header" "$header.violations"' EXIT
external='k8s.io/api/core/v1 k8s.io/api/apps/v1 k8s.io/api/autoscaling/v1 k8s.io/api/authentication/v1
k8s.io/api/authorization/v1 k8s.io/api/autoscaling/v2 k8s.io/api/batch/v1 k8s.io/api/certificates/v1 k8s.io/api/coordination/v1
k8s.io/api/discovery/v1 k8s.io/api/networking/v1 k8s.io/api/policy/v1 k8s.io/api/scheduling/v1 k8s.io/api/scheduling/v1alpha3
k8s.io/api/storage/v1 k8s.io/metrics/pkg/apis/metrics/v1beta1
sigs.k8s.io/gateway-api/apis/v1 sigs.k8s.io/gateway-api/apis/v1beta1
k8s.io/apimachinery/pkg/apis/meta/v1 k8s.io/apimachinery/pkg/runtime k8s.io/apimachinery/pkg/version
k8s.io/apimachinery/pkg/api/resource k8s.io/apimachinery/pkg/util/intstr'
readonly_packages=$(echo $external | tr ' ' ',')
# shellcheck disable=SC2086 # a list of packages
openapi-gen --go-header-file "$header" --report-filename "$header.violations" \
	--output-dir controlplane/apiserver/openapi --output-pkg gitk8s.dev/gitk8s/controlplane/apiserver/openapi \
	--output-file zz_generated.openapi.go --output-model-name-file zz_generated.model_name.go \
	--readonly-pkg "$readonly_packages" gitk8s.dev/gitk8s/api/v1alpha1 $external
