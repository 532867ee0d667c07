package apiserver

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/controlplane/apiserver/printers"
	"gitk8s.dev/gitk8s/controlplane/apiserver/validation"
)

// resources is the table of the kinds that are stored. A new kind is one entry
// here, with its defaults, validation and columns in their packages and, for a
// new group, a line in servedGroups.
func resources() []*resource {
	return slices.Concat(coreResources(), claimResources(), volumeResources(), appsResources(), setResources(), batchResources(), disruptionResources(), priorityResources(), certificateResources(), autoscalingResources(), networkingResources(), gatewayResources(), ownResources())
}

func object[T any, P interface {
	*T
	runtime.Object
}]() runtime.Object {
	return P(new(T))
}

func coreResources() []*resource {
	core := corev1.SchemeGroupVersion
	return []*resource{
		{
			gv: core, kind: "Namespace", plural: "namespaces", singular: "namespace", shortNames: []string{"ns"},
			newObject: object[corev1.Namespace], newList: object[corev1.NamespaceList],
			table: printers.Namespaces, name: apivalidation.ValidateNamespaceName, status: true,
			prepareCreate: namespaceCreate, prepareUpdate: namespaceUpdate, fields: namespaceFields,
			configure: configureNamespaces, subresources: namespaceSubresources,
		},
		{
			gv: core, kind: "Node", plural: "nodes", singular: "node", shortNames: []string{"no"},
			newObject: object[corev1.Node], newList: object[corev1.NodeList],
			table: printers.Nodes, name: apivalidation.NameIsDNSSubdomain,
			status: true, statusWritesLabels: true, statusOnCreate: true, check: checked(validation.Node), fields: nodeFields,
			subresources: nodeSubresources,
		},
		{
			gv: core, kind: "Pod", plural: "pods", singular: "pod", shortNames: []string{"po"}, categories: []string{"all"},
			namespaced: true, newObject: object[corev1.Pod], newList: object[corev1.PodList],
			table: printers.Pods, name: apivalidation.NameIsDNSSubdomain, status: true, statusWritesLabels: true, generation: true,
			check: checked(validation.Pod), prepareCreate: podCreate, prepareUpdate: podUpdate,
			prepareStatusUpdate: podStatusUpdate, warnings: podWarnings,
			graceful: podGrace, fields: podFields, indexed: "spec.nodeName", subresources: podSubresources,
		},
		{
			gv: core, kind: "ConfigMap", plural: "configmaps", singular: "configmap", shortNames: []string{"cm"},
			namespaced: true, newObject: object[corev1.ConfigMap], newList: object[corev1.ConfigMapList],
			table: printers.ConfigMaps, name: apivalidation.NameIsDNSSubdomain, createOnUpdate: true,
			check: checked(validation.ConfigMap),
		},
		{
			gv: core, kind: "Secret", plural: "secrets", singular: "secret",
			namespaced: true, newObject: object[corev1.Secret], newList: object[corev1.SecretList],
			table: printers.Secrets, name: apivalidation.NameIsDNSSubdomain, createOnUpdate: true,
			check: checked(validation.Secret), fields: secretFields,
		},
		{
			gv: core, kind: "Service", plural: "services", singular: "service", shortNames: []string{"svc"}, categories: []string{"all"},
			namespaced: true, newObject: object[corev1.Service], newList: object[corev1.ServiceList],
			table: printers.Services, name: apivalidation.NameIsDNS1035Label, createOnUpdate: true, status: true,
			check: checked(validation.Service), validateStatus: checked(validation.ServiceStatus),
			fields: serviceFields, configure: configureServices, warnings: serviceWarnings,
			subresources: serviceSubresources,
		},
		{
			gv: core, kind: "Endpoints", plural: "endpoints", singular: "endpoints", shortNames: []string{"ep"},
			namespaced: true, newObject: object[corev1.Endpoints], newList: object[corev1.EndpointsList],
			table: printers.Endpoints, name: apivalidation.NameIsDNSSubdomain, createOnUpdate: true,
			check: checked(validation.Endpoints),
		},
		{
			gv: core, kind: "ReplicationController", plural: "replicationcontrollers", singular: "replicationcontroller",
			shortNames: []string{"rc"}, categories: []string{"all"}, namespaced: true,
			newObject: object[corev1.ReplicationController], newList: object[corev1.ReplicationControllerList],
			table: printers.ReplicationControllers, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.ReplicationController), warnings: replicationControllerWarnings,
			fields: replicationControllerFields, subresources: replicationControllerSubresources,
		},
		{
			gv: core, kind: "ServiceAccount", plural: "serviceaccounts", singular: "serviceaccount", shortNames: []string{"sa"},
			namespaced: true, newObject: object[corev1.ServiceAccount], newList: object[corev1.ServiceAccountList],
			table: printers.ServiceAccounts, name: apivalidation.ValidateServiceAccountName,
			subresources: serviceAccountSubresources,
		},
		{
			gv: core, kind: "Event", plural: "events", singular: "event", shortNames: []string{"ev"},
			namespaced: true, newObject: object[corev1.Event], newList: object[corev1.EventList],
			table: printers.Events, name: apivalidation.NameIsDNSSubdomain, createOnUpdate: true,
			ttlSeconds: eventTTLSeconds, check: checked(validation.Event), fields: eventFields, noGarbageCollection: true,
		},
	}
}

func appsResources() []*resource {
	apps := appsv1.SchemeGroupVersion
	return []*resource{
		{
			gv: apps, kind: "Deployment", plural: "deployments", singular: "deployment", shortNames: []string{"deploy"},
			categories: []string{"all"}, namespaced: true,
			newObject: object[appsv1.Deployment], newList: object[appsv1.DeploymentList],
			table: printers.Deployments, name: apivalidation.NameIsDNSSubdomain,
			status: true, generation: true, annotationsBumpGeneration: true,
			check: checked(validation.Deployment), warnings: deploymentWarnings, subresources: deploymentSubresources,
		},
		{
			gv: apps, kind: "ReplicaSet", plural: "replicasets", singular: "replicaset", shortNames: []string{"rs"},
			categories: []string{"all"}, namespaced: true,
			newObject: object[appsv1.ReplicaSet], newList: object[appsv1.ReplicaSetList],
			table: printers.ReplicaSets, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.ReplicaSet), warnings: replicaSetWarnings, fields: replicaSetFields, subresources: replicaSetSubresources,
		},
		{
			gv: apps, kind: "ControllerRevision", plural: "controllerrevisions", singular: "controllerrevision",
			namespaced: true, newObject: object[appsv1.ControllerRevision], newList: object[appsv1.ControllerRevisionList],
			table: printers.ControllerRevisions, name: apivalidation.NameIsDNSSubdomain,
			check: checked(validation.ControllerRevision),
		},
		{
			gv: discoveryv1.SchemeGroupVersion, kind: "EndpointSlice", plural: "endpointslices", singular: "endpointslice",
			namespaced: true, newObject: object[discoveryv1.EndpointSlice], newList: object[discoveryv1.EndpointSliceList],
			table: printers.EndpointSlices, name: apivalidation.NameIsDNSSubdomain,
			check: checked(validation.EndpointSlice),
		},
		{
			gv: coordinationv1.SchemeGroupVersion, kind: "Lease", plural: "leases", singular: "lease",
			namespaced: true, newObject: object[coordinationv1.Lease], newList: object[coordinationv1.LeaseList],
			table: printers.Leases, name: apivalidation.NameIsDNSSubdomain, createOnUpdate: true,
			check: checked(validation.Lease),
		},
	}
}

func ownResources() []*resource {
	own := v1alpha1.SchemeGroupVersion
	return []*resource{
		{
			gv: own, kind: "Application", plural: "applications", singular: "application", shortNames: []string{"app"},
			categories: []string{"all", "gitk8s"}, namespaced: true,
			newObject: object[v1alpha1.Application], newList: object[v1alpha1.ApplicationList],
			table: printers.Applications, name: apivalidation.NameIsDNSLabel, status: true, generation: true,
			check: checked(validation.Application),
		},
		{
			gv: own, kind: "Revision", plural: "revisions", singular: "revision", shortNames: []string{"rev"},
			categories: []string{"gitk8s"}, namespaced: true,
			newObject: object[v1alpha1.Revision], newList: object[v1alpha1.RevisionList],
			table: printers.Revisions, name: apivalidation.NameIsDNSSubdomain, status: true, generation: true,
			check: checked(validation.Revision),
		},
	}
}

// checked adapts a typed validation function; old is nil on create.
func checked[T runtime.Object](f func(obj, old T) field.ErrorList) func(obj, old runtime.Object) field.ErrorList {
	return func(obj, old runtime.Object) field.ErrorList {
		var typed T
		if old != nil {
			typed = old.(T)
		}
		return f(obj.(T), typed)
	}
}
