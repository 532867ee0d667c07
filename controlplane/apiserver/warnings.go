package apiserver

import "k8s.io/apimachinery/pkg/runtime"

func podWarnings(o runtime.Object) []string        { return nil }
func serviceWarnings(o runtime.Object) []string    { return nil }
func deploymentWarnings(o runtime.Object) []string { return nil }
func replicaSetWarnings(o runtime.Object) []string { return nil }
