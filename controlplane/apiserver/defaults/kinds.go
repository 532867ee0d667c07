package defaults

import (
	"maps"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"gitk8s.dev/gitk8s/api/v1alpha1"
)

// Namespace puts the namespace's own name into a label, for selectors.
func Namespace(ns *corev1.Namespace) {
	if ns.Name == "" {
		return
	}
	metav1.SetMetaDataLabel(&ns.ObjectMeta, corev1.LabelMetadataName, ns.Name)
}

// Node takes what a node has for what pods may use, when nothing else is said.
func Node(node *corev1.Node) {
	if node.Status.Allocatable == nil && node.Status.Capacity != nil {
		node.Status.Allocatable = node.Status.Capacity.DeepCopy()
	}
	resourceList(node.Status.Allocatable)
	resourceList(node.Status.Capacity)
}

// Secret sets the type, and moves stringData, which is for writing only, to data.
func Secret(s *corev1.Secret) {
	unset(&s.Type, corev1.SecretTypeOpaque)
	if len(s.StringData) == 0 {
		return
	}
	data := maps.Clone(s.Data)
	if data == nil {
		data = map[string][]byte{}
	}
	for k, v := range s.StringData {
		data[k] = []byte(v)
	}
	s.Data, s.StringData = data, nil
}

// Service sets the type, the ports and the traffic policies. Its address and
// address families are set when it is created.
func Service(svc *corev1.Service) {
	spec := &svc.Spec
	unset(&spec.SessionAffinity, corev1.ServiceAffinityNone)
	if spec.SessionAffinity == corev1.ServiceAffinityNone {
		spec.SessionAffinityConfig = nil
	}
	if spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		missing(&spec.SessionAffinityConfig, corev1.SessionAffinityConfig{})
		missing(&spec.SessionAffinityConfig.ClientIP, corev1.ClientIPConfig{})
		missing(&spec.SessionAffinityConfig.ClientIP.TimeoutSeconds, corev1.DefaultClientIPServiceAffinitySeconds)
	}
	unset(&spec.Type, corev1.ServiceTypeClusterIP)
	for i := range spec.Ports {
		p := &spec.Ports[i]
		unset(&p.Protocol, corev1.ProtocolTCP)
		if p.TargetPort == intstr.FromInt32(0) || p.TargetPort == intstr.FromString("") {
			p.TargetPort = intstr.FromInt32(p.Port)
		}
	}
	external := spec.Type == corev1.ServiceTypeNodePort || spec.Type == corev1.ServiceTypeLoadBalancer ||
		(spec.Type == corev1.ServiceTypeClusterIP && len(spec.ExternalIPs) > 0)
	if external {
		unset(&spec.ExternalTrafficPolicy, corev1.ServiceExternalTrafficPolicyCluster)
	}
	if spec.Type != corev1.ServiceTypeExternalName {
		missing(&spec.InternalTrafficPolicy, corev1.ServiceInternalTrafficPolicyCluster)
	}
	if spec.Type == corev1.ServiceTypeLoadBalancer {
		missing(&spec.AllocateLoadBalancerNodePorts, true)
		for i := range svc.Status.LoadBalancer.Ingress {
			if in := &svc.Status.LoadBalancer.Ingress[i]; in.IP != "" {
				missing(&in.IPMode, corev1.LoadBalancerIPModeVIP)
			}
		}
	}
}

// Endpoints sets the ports' protocols.
func Endpoints(e *corev1.Endpoints) {
	for i := range e.Subsets {
		for j := range e.Subsets[i].Ports {
			unset(&e.Subsets[i].Ports[j].Protocol, corev1.ProtocolTCP)
		}
	}
}

// EndpointSlice sets the ports' names and protocols.
func EndpointSlice(s *discoveryv1.EndpointSlice) {
	for i := range s.Ports {
		missing(&s.Ports[i].Name, "")
		missing(&s.Ports[i].Protocol, corev1.ProtocolTCP)
	}
}

// Deployment sets one replica, a rolling update by a quarter, and its limits.
func Deployment(d *appsv1.Deployment) {
	PodSpec(&d.Spec.Template.Spec)
	missing(&d.Spec.Replicas, 1)
	strategy := &d.Spec.Strategy
	unset(&strategy.Type, appsv1.RollingUpdateDeploymentStrategyType)
	if strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		missing(&strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		missing(&strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		missing(&strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	missing(&d.Spec.RevisionHistoryLimit, 10)
	missing(&d.Spec.ProgressDeadlineSeconds, 600)
}

// ReplicaSet sets one replica.
func ReplicaSet(rs *appsv1.ReplicaSet) {
	PodSpec(&rs.Spec.Template.Spec)
	missing(&rs.Spec.Replicas, 1)
}

// ReplicationController sets one replica, and takes selector and labels from the
// template.
func ReplicationController(rc *corev1.ReplicationController) {
	missing(&rc.Spec.Replicas, 1)
	if rc.Spec.Template == nil {
		return
	}
	PodSpec(&rc.Spec.Template.Spec)
	labels := rc.Spec.Template.Labels
	if len(labels) == 0 {
		return
	}
	if len(rc.Spec.Selector) == 0 {
		rc.Spec.Selector = maps.Clone(labels)
	}
	if len(rc.Labels) == 0 {
		rc.Labels = maps.Clone(labels)
	}
}

// The defaults of an Application, as its documentation has them.
const (
	applicationRef      = "main"
	applicationPath     = "."
	applicationInterval = 30 * time.Second
	applicationTimeout  = 5 * time.Minute
	applicationHistory  = int32(50)
)

// Application sets the defaults that its type documents.
func Application(a *v1alpha1.Application) {
	unset(&a.Spec.Source.Ref, applicationRef)
	unset(&a.Spec.Source.Path, applicationPath)
	missing(&a.Spec.Sync.Interval, metav1.Duration{Duration: applicationInterval})
	missing(&a.Spec.Sync.Timeout, metav1.Duration{Duration: applicationTimeout})
	missing(&a.Spec.Sync.Prune, true)
	missing(&a.Spec.Sync.SelfHeal, true)
	unset(&a.Spec.Images.Resolve, v1alpha1.ResolveDigest)
	missing(&a.Spec.Rollout.AutoRollback, true)
	missing(&a.Spec.History.Limit, applicationHistory)
}
