package apiserver

import (
	"fmt"
	"net/url"
	"reflect"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	gatewayv1beta1 "sigs.k8s.io/gateway-api/apis/v1beta1"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

// types is the scheme of the server with what is derived from it.
type types struct {
	scheme     *runtime.Scheme
	codecs     serializer.CodecFactory
	parameters runtime.ParameterCodec
}

// withoutProtobuf negotiates for kinds that have no protobuf form: a client that
// would rather have protobuf and can do with JSON gets JSON.
type withoutProtobuf struct{ serializer.CodecFactory }

// SupportedMediaTypes implements runtime.NegotiatedSerializer.
func (w withoutProtobuf) SupportedMediaTypes() []runtime.SerializerInfo {
	return slices.DeleteFunc(slices.Clone(w.CodecFactory.SupportedMediaTypes()), func(i runtime.SerializerInfo) bool {
		return i.MediaType == runtime.ContentTypeProtobuf
	})
}

// servedGroups are the API groups in the order of discovery. The first version of
// a group is preferred, and stored and used as the hub; kinds that another version
// has in a form of its own are converted (addConversions).
var servedGroups = []struct {
	gv    schema.GroupVersion
	build func(*runtime.Scheme) error
}{
	{corev1.SchemeGroupVersion, corev1.AddToScheme},
	{appsv1.SchemeGroupVersion, appsv1.AddToScheme},
	{authenticationv1.SchemeGroupVersion, authenticationv1.AddToScheme},
	{authorizationv1.SchemeGroupVersion, authorizationv1.AddToScheme},
	{autoscalingv2.SchemeGroupVersion, autoscalingv2.AddToScheme},
	{autoscalingv1.SchemeGroupVersion, autoscalingv1.AddToScheme},
	{batchv1.SchemeGroupVersion, batchv1.AddToScheme},
	{certificatesv1.SchemeGroupVersion, certificatesv1.AddToScheme},
	{coordinationv1.SchemeGroupVersion, coordinationv1.AddToScheme},
	{discoveryv1.SchemeGroupVersion, discoveryv1.AddToScheme},
	{gatewayv1.SchemeGroupVersion, gatewayv1.Install},
	{gatewayv1beta1.SchemeGroupVersion, gatewayv1beta1.Install},
	{metricsv1beta1.SchemeGroupVersion, metricsv1beta1.AddToScheme},
	{networkingv1.SchemeGroupVersion, networkingv1.AddToScheme},
	{policyv1.SchemeGroupVersion, policyv1.AddToScheme},
	{schedulingv1.SchemeGroupVersion, schedulingv1.AddToScheme},
	{storagev1.SchemeGroupVersion, storagev1.AddToScheme},
	{v1alpha1.SchemeGroupVersion, v1alpha1.AddToScheme},
}

// newTypes builds the scheme. The external types serve as the internal version
// too, so that no conversion is needed anywhere.
func newTypes() (*types, error) {
	s := runtime.NewScheme()
	if err := metainternalversion.AddToScheme(s); err != nil {
		return nil, fmt.Errorf("apiserver: register meta types: %w", err)
	}
	for _, g := range servedGroups {
		if err := g.build(s); err != nil {
			return nil, fmt.Errorf("apiserver: register %s: %w", g.gv, err)
		}
		addHubVersion(s, g.gv)
	}
	for _, g := range servedGroups {
		if err := s.SetVersionPriority(versionsOf(g.gv.Group)...); err != nil {
			return nil, fmt.Errorf("apiserver: order the versions of %s: %w", g.gv.Group, err)
		}
	}
	if err := addConversions(s); err != nil {
		return nil, fmt.Errorf("apiserver: register conversions: %w", err)
	}
	s.AddUnversionedTypes(schema.GroupVersion{Version: "v1"},
		&metav1.Status{}, &metav1.APIVersions{}, &metav1.APIGroupList{},
		&metav1.APIGroup{}, &metav1.APIResourceList{})
	defaults.Register(s)
	if err := addGatewayTypes(s); err != nil {
		return nil, fmt.Errorf("apiserver: register the Gateway API: %w", err)
	}
	if err := addConnectOptions(s); err != nil {
		return nil, err
	}
	if err := addFieldLabels(s); err != nil {
		return nil, err
	}
	return &types{
		scheme:     s,
		codecs:     serializer.NewCodecFactory(s),
		parameters: runtime.NewParameterCodec(s),
	}, nil
}

// versionsOf are the versions of a group, the preferred one first.
func versionsOf(group string) (out []schema.GroupVersion) {
	for _, g := range servedGroups {
		if g.gv.Group == group {
			out = append(out, g.gv)
		}
	}
	return out
}

// hasProtobuf says whether the kinds of a group have a protobuf form.
func hasProtobuf(group string) bool {
	return group != v1alpha1.GroupName && group != gatewayv1.GroupName
}

// addHubVersion registers the Go types of a version as the internal version of
// their group as well, but for the kinds of meta/v1 that every version has, and for
// those that a version before it has.
func addHubVersion(s *runtime.Scheme, gv schema.GroupVersion) {
	meta := runtime.NewScheme()
	metav1.AddToGroupVersion(meta, gv)
	shared := meta.KnownTypes(gv)
	hub := schema.GroupVersion{Group: gv.Group, Version: runtime.APIVersionInternal}
	for kind, t := range s.KnownTypes(gv) {
		if _, ok := shared[kind]; ok || s.Recognizes(hub.WithKind(kind)) {
			continue
		}
		s.AddKnownTypeWithName(hub.WithKind(kind), reflect.New(t).Interface().(runtime.Object))
	}
}

// addConnectOptions teaches the scheme to read the query parameters of the
// subresources that stream.
func addConnectOptions(s *runtime.Scheme) error {
	from := (*url.Values)(nil)
	for _, to := range []runtime.Object{
		&corev1.PodLogOptions{}, &corev1.PodExecOptions{}, &corev1.PodAttachOptions{},
		&corev1.PodPortForwardOptions{}, &corev1.PodProxyOptions{}, &corev1.ServiceProxyOptions{}, &corev1.NodeProxyOptions{},
	} {
		if err := s.AddConversionFunc(from, to, decodeQuery); err != nil {
			return fmt.Errorf("apiserver: register the parameters of %T: %w", to, err)
		}
	}
	return nil
}

func decodeQuery(in, out any, _ conversion.Scope) error {
	q, ok := in.(*url.Values)
	if !ok {
		return fmt.Errorf("expected query parameters, got %T", in)
	}
	return queryInto(*q, out)
}

// addFieldLabels declares which fields of a kind may be selected by; AttrFunc of
// the kind's store supplies their values.
func addFieldLabels(s *runtime.Scheme) error {
	for _, r := range resources() {
		if r.fields == nil {
			continue
		}
		known := map[string]bool{"metadata.name": true, "metadata.namespace": true}
		for label := range r.fields(r.newObject()) {
			known[label] = true
		}
		err := s.AddFieldLabelConversionFunc(r.gv.WithKind(r.kind), func(label, value string) (string, string, error) {
			if !known[label] {
				return "", "", fmt.Errorf("field label not supported: %s", label)
			}
			return label, value, nil
		})
		if err != nil {
			return fmt.Errorf("apiserver: register the field labels of %s: %w", r.kind, err)
		}
	}
	return nil
}
