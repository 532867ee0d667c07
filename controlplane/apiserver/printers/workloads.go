package printers

import (
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

func templateColumns() []metav1.TableColumnDefinition {
	return []metav1.TableColumnDefinition{
		wide("Containers", "Names of each container in the template."),
		wide("Images", "Images referenced by each container in the template."),
		wide("Selector", "Label selector for pods."),
	}
}

func templateCells(template *corev1.PodTemplateSpec, selector *metav1.LabelSelector) []any {
	var names, images []string
	for i := range template.Spec.Containers {
		names = append(names, template.Spec.Containers[i].Name)
		images = append(images, template.Spec.Containers[i].Image)
	}
	return []any{strings.Join(names, ","), strings.Join(images, ","), metav1.FormatLabelSelector(selector)}
}

func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// Deployments prints Deployments.
var Deployments = Table{
	Columns: append([]metav1.TableColumnDefinition{
		nameColumn(), column("Ready", "Number of the pod with ready state"),
		number("Up-to-date", "Number of pods of the newest template."),
		number("Available", "Number of pods ready for at least minReadySeconds."), ageColumn(),
	}, templateColumns()...),
	Row: func(obj runtime.Object, now time.Time) []any {
		d := obj.(*appsv1.Deployment)
		return append([]any{
			d.Name, fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, replicas(d.Spec.Replicas)),
			int64(d.Status.UpdatedReplicas), int64(d.Status.AvailableReplicas), age(d.CreationTimestamp, now),
		}, templateCells(&d.Spec.Template, d.Spec.Selector)...)
	},
}

// ReplicaSets prints ReplicaSets.
var ReplicaSets = Table{
	Columns: append([]metav1.TableColumnDefinition{
		nameColumn(), number("Desired", "Number of pods wanted."), number("Current", "Number of pods there are."),
		number("Ready", "Number of pods that are ready."), ageColumn(),
	}, templateColumns()...),
	Row: func(obj runtime.Object, now time.Time) []any {
		rs := obj.(*appsv1.ReplicaSet)
		return append([]any{
			rs.Name, int64(replicas(rs.Spec.Replicas)), int64(rs.Status.Replicas), int64(rs.Status.ReadyReplicas),
			age(rs.CreationTimestamp, now),
		}, templateCells(&rs.Spec.Template, rs.Spec.Selector)...)
	},
}

// ReplicationControllers prints ReplicationControllers.
var ReplicationControllers = Table{
	Columns: ReplicaSets.Columns,
	Row: func(obj runtime.Object, now time.Time) []any {
		rc := obj.(*corev1.ReplicationController)
		cells := []any{
			rc.Name, int64(replicas(rc.Spec.Replicas)), int64(rc.Status.Replicas), int64(rc.Status.ReadyReplicas),
			age(rc.CreationTimestamp, now),
		}
		return append(cells, templateCells(rc.Spec.Template, metav1.SetAsLabelSelector(rc.Spec.Selector))...)
	},
}

// ControllerRevisions prints ControllerRevisions.
var ControllerRevisions = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Controller", "What it is a revision of."), number("Revision", "Its number."), ageColumn(),
	},
	Row: func(obj runtime.Object, now time.Time) []any {
		r := obj.(*appsv1.ControllerRevision)
		owner := none
		if c := metav1.GetControllerOf(r); c != nil {
			group, _, _ := strings.Cut(c.APIVersion, "/")
			owner = fmt.Sprintf("%s.%s/%s", strings.ToLower(c.Kind), group, c.Name)
		}
		return []any{r.Name, owner, r.Revision, age(r.CreationTimestamp, now)}
	},
}

// Leases prints Leases.
var Leases = Table{
	Columns: []metav1.TableColumnDefinition{nameColumn(), column("Holder", "Who holds it."), ageColumn()},
	Row: func(obj runtime.Object, now time.Time) []any {
		l := obj.(*coordinationv1.Lease)
		holder := ""
		if l.Spec.HolderIdentity != nil {
			holder = *l.Spec.HolderIdentity
		}
		return []any{l.Name, holder, age(l.CreationTimestamp, now)}
	},
}
