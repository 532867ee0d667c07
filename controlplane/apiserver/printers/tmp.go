package printers

import (
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"time"
)

var tmp = Table{Columns: []metav1.TableColumnDefinition{nameColumn(), ageColumn()}, Row: func(o runtime.Object, now time.Time) []any {
	m, _ := meta.Accessor(o)
	return []any{m.GetName(), age(m.GetCreationTimestamp(), now)}
}}
var Namespaces, Nodes, Pods, ConfigMaps, Secrets, Services, Endpoints, ServiceAccounts, Events, Deployments, ReplicaSets, ControllerRevisions, EndpointSlices, Leases, Applications, Revisions = tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp, tmp
