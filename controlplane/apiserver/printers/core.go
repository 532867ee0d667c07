package printers

import (
	"fmt"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// Namespaces prints Namespaces.
var Namespaces = Table{
	Columns: []metav1.TableColumnDefinition{nameColumn(), column("Status", "The status of the namespace"), ageColumn()},
	Row: func(obj runtime.Object, now time.Time) []any {
		ns := obj.(*corev1.Namespace)
		return []any{ns.Name, string(ns.Status.Phase), age(ns.CreationTimestamp, now)}
	},
}

// ConfigMaps prints ConfigMaps.
var ConfigMaps = Table{
	Columns: []metav1.TableColumnDefinition{nameColumn(), number("Data", "The number of keys."), ageColumn()},
	Row: func(obj runtime.Object, now time.Time) []any {
		c := obj.(*corev1.ConfigMap)
		return []any{c.Name, int64(len(c.Data) + len(c.BinaryData)), age(c.CreationTimestamp, now)}
	},
}

// Secrets prints Secrets, never their values.
var Secrets = Table{
	Columns: []metav1.TableColumnDefinition{nameColumn(), column("Type", "What the secret is for."), number("Data", "The number of keys."), ageColumn()},
	Row: func(obj runtime.Object, now time.Time) []any {
		s := obj.(*corev1.Secret)
		return []any{s.Name, string(s.Type), int64(len(s.Data)), age(s.CreationTimestamp, now)}
	},
}

// ServiceAccounts prints ServiceAccounts.
var ServiceAccounts = Table{
	Columns: []metav1.TableColumnDefinition{nameColumn(), number("Secrets", "The number of secrets it may use."), ageColumn()},
	Row: func(obj runtime.Object, now time.Time) []any {
		s := obj.(*corev1.ServiceAccount)
		return []any{s.Name, int64(len(s.Secrets)), age(s.CreationTimestamp, now)}
	},
}

// Nodes prints Nodes.
var Nodes = Table{
	Columns: []metav1.TableColumnDefinition{
		nameColumn(), column("Status", "The status of the node"), column("Roles", "The roles of the node"), ageColumn(),
		column("Version", "Version of the worker."),
		wide("Internal-IP", "Address inside the cluster."), wide("External-IP", "Address outside."),
		wide("OS-Image", "Operating system."), wide("Kernel-Version", "Kernel."), wide("Container-Runtime", "Container runtime."),
	},
	Row: nodeRow,
}

func nodeRow(obj runtime.Object, now time.Time) []any {
	n := obj.(*corev1.Node)
	info := n.Status.NodeInfo
	return []any{
		n.Name, nodeStatus(n), nodeRoles(n), age(n.CreationTimestamp, now), info.KubeletVersion,
		nodeAddress(n, corev1.NodeInternalIP), nodeAddress(n, corev1.NodeExternalIP),
		orUnknown(info.OSImage), orUnknown(info.KernelVersion), orUnknown(info.ContainerRuntimeVersion),
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "<unknown>"
	}
	return s
}

func nodeStatus(n *corev1.Node) string {
	status := "Unknown"
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if n.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

func nodeRoles(n *corev1.Node) string {
	var roles []string
	for k, v := range n.Labels {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok && role != "" {
			roles = append(roles, role)
		} else if k == "kubernetes.io/role" && v != "" {
			roles = append(roles, v)
		}
	}
	sort.Strings(roles)
	return orNone(strings.Join(roles, ","))
}

func nodeAddress(n *corev1.Node, t corev1.NodeAddressType) string {
	for _, a := range n.Status.Addresses {
		if a.Type == t {
			return a.Address
		}
	}
	return none
}

// Events prints Events.
var Events = Table{
	Columns: []metav1.TableColumnDefinition{
		column("Last Seen", "Time since it last happened."), column("Type", "Normal or Warning."),
		column("Reason", "One word for what happened."), column("Object", "What it happened to."),
		wide("Subobject", "The part of the object."), wide("Source", "Who tells it."),
		column("Message", "What happened."),
		wide("First Seen", "Time since it first happened."), wide("Count", "How often."), wide("Name", "Name of the event."),
	},
	Row: eventRow,
}

func eventRow(obj runtime.Object, now time.Time) []any {
	e := obj.(*corev1.Event)
	first := age(e.FirstTimestamp, now)
	if e.FirstTimestamp.IsZero() {
		first = age(metav1.NewTime(e.EventTime.Time), now)
	}
	last := first
	if !e.LastTimestamp.IsZero() {
		last = age(e.LastTimestamp, now)
	}
	count := e.Count
	if e.Series != nil {
		last, count = age(metav1.NewTime(e.Series.LastObservedTime.Time), now), e.Series.Count
	} else if count == 0 {
		count = 1
	}
	source := e.Source.Component
	if source == "" {
		source = e.ReportingController
	}
	if e.Source.Host != "" {
		source += ", " + e.Source.Host
	}
	return []any{
		last, e.Type, e.Reason, strings.ToLower(e.InvolvedObject.Kind) + "/" + e.InvolvedObject.Name,
		e.InvolvedObject.FieldPath, source, strings.TrimSpace(e.Message), first, fmt.Sprint(count), e.Name,
	}
}
