package apiserver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	genericapiserver "k8s.io/apiserver/pkg/server"
	"k8s.io/client-go/kubernetes"
	restclient "k8s.io/client-go/rest"
	"k8s.io/utils/ptr"
	gatewayclient "sigs.k8s.io/gateway-api/pkg/client/clientset/versioned"
)

const (
	// The name server of the cluster, under the names that it has everywhere: the
	// tenth service address (10.43.0.10), of each family.
	dnsName    = "kube-dns"
	dnsAddress = 9
	dnsPort    = 53

	apiServiceName  = "kubernetes"
	apiServiceOwner = namespaceDefault + "/" + apiServiceName
	apiServicePort  = 443
	bootstrapLimit  = 2 * time.Minute
)

// bootstrap makes what every cluster has: the four namespaces, a storage class,
// classes of Ingresses and Gateways, two priority classes, and the service and endpoints of the API itself. Readiness waits for it.
func (s *Server) bootstrap(hook genericapiserver.PostStartHookContext) error {
	ctx, cancel := context.WithTimeout(hook.Context, bootstrapLimit)
	defer cancel()
	config := s.LoopbackConfig()
	// That Endpoints are deprecated is known: old clients read them.
	config.WarningHandler = restclient.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	gateways, err := gatewayclient.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	if err := awaitStorage(ctx, s.stores[corev1.Resource("services")]); err != nil {
		return err
	}
	if err := s.repairServices(ctx, client); err != nil {
		return err
	}
	for _, name := range systemNamespaces() {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		_, err := client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			return fmt.Errorf("create namespace %s: %w", name, err)
		}
	}
	if err := errors.Join(bootstrapClass(ctx, client), bootstrapIngressClass(ctx, client), bootstrapGatewayClass(ctx, gateways), bootstrapPriorities(ctx, client), s.bootstrapService(ctx, client), s.bootstrapDNS(ctx, client)); err != nil {
		return err
	}
	if s.config.Replicated {
		return s.joinReplicas(hook.Context, client)
	}
	return s.writeEndpoints(ctx, client, []string{s.config.AdvertiseAddress})
}

// awaitStorage waits until a kind can be read. Clients are told to ask again before that
// and do; what reads without them must wait.
func awaitStorage(ctx context.Context, st *store) error {
	err := wait.PollUntilContextCancel(ctx, 5*time.Millisecond, true, func(context.Context) (bool, error) {
		return st.Storage.Storage.ReadinessCheck() == nil, nil
	})
	if err != nil {
		return fmt.Errorf("%s cannot be read from etcd: %w", st.r.plural, errors.Join(err, st.Storage.Storage.ReadinessCheck()))
	}
	return nil
}

// writeEndpoints writes where the API is served.
func (s *Server) writeEndpoints(ctx context.Context, client kubernetes.Interface, addresses []string) error {
	if err := s.bootstrapEndpoints(ctx, client, addresses); err != nil {
		return err
	}
	return s.bootstrapSlice(ctx, client, addresses)
}

func (s *Server) bootstrapService(ctx context.Context, client kubernetes.Interface) error {
	want := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: apiServiceName, Namespace: namespaceDefault,
			Labels: map[string]string{"component": "apiserver", "provider": "kubernetes"},
		},
		Spec: corev1.ServiceSpec{
			Type:      corev1.ServiceTypeClusterIP,
			ClusterIP: s.addresses[0].first(),
			Ports: []corev1.ServicePort{{
				Name: "https", Port: apiServicePort, Protocol: corev1.ProtocolTCP,
				TargetPort: intstr.FromInt32(int32(s.config.AdvertisePort)),
			}},
		},
	}
	services := client.CoreV1().Services(namespaceDefault)
	have, err := services.Get(ctx, apiServiceName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = services.Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case err == nil && !equality.Semantic.DeepEqual(have.Spec.Ports, want.Spec.Ports):
		have.Spec.Ports = want.Spec.Ports
		_, err = services.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write service %s: %w", apiServiceOwner, err)
	}
	return nil
}

// bootstrapDNS makes the service at whose address every worker answers names itself:
// it has no endpoints. A cluster that has given the address away keeps it so, and
// has no names.
func (s *Server) bootstrapDNS(ctx context.Context, client kubernetes.Interface) error {
	services := client.CoreV1().Services(metav1.NamespaceSystem)
	_, err := services.Get(ctx, dnsName, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	var ips []string
	for _, r := range s.addresses {
		ips = append(ips, r.at(dnsAddress))
	}
	_, err = services.Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: dnsName, Labels: map[string]string{"k8s-app": dnsName}},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ips[0], ClusterIPs: ips,
			Ports: []corev1.ServicePort{
				{Name: "dns", Port: dnsPort, Protocol: corev1.ProtocolUDP, TargetPort: intstr.FromInt32(dnsPort)},
				{Name: "dns-tcp", Port: dnsPort, Protocol: corev1.ProtocolTCP, TargetPort: intstr.FromInt32(dnsPort)},
			},
		},
	}, metav1.CreateOptions{})
	switch {
	case apierrors.IsInvalid(err):
		slog.Warn("pods cannot look up names: another service has the address", "address", ips, "error", err)
	case err != nil && !apierrors.IsAlreadyExists(err):
		return fmt.Errorf("write service %s: %w", dnsName, err)
	}
	return nil
}

func (s *Server) bootstrapEndpoints(ctx context.Context, client kubernetes.Interface, addresses []string) error {
	want := []corev1.EndpointSubset{{
		Ports: []corev1.EndpointPort{{Name: "https", Port: int32(s.config.AdvertisePort), Protocol: corev1.ProtocolTCP}},
	}}
	for _, a := range addresses {
		want[0].Addresses = append(want[0].Addresses, corev1.EndpointAddress{IP: a})
	}
	endpoints := client.CoreV1().Endpoints(namespaceDefault)
	have, err := endpoints.Get(ctx, apiServiceName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = endpoints.Create(ctx, &corev1.Endpoints{
			ObjectMeta: metav1.ObjectMeta{
				Name: apiServiceName, Namespace: namespaceDefault,
				Labels: map[string]string{discoveryv1.LabelSkipMirror: "true"},
			},
			Subsets: want,
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case err == nil && !equality.Semantic.DeepEqual(have.Subsets, want):
		have.Subsets = want
		_, err = endpoints.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write endpoints %s: %w", apiServiceOwner, err)
	}
	return nil
}

func (s *Server) bootstrapSlice(ctx context.Context, client kubernetes.Interface, addresses []string) error {
	family := discoveryv1.AddressTypeIPv4
	if ip, err := netip.ParseAddr(s.config.AdvertiseAddress); err == nil && ip.Is6() {
		family = discoveryv1.AddressTypeIPv6
	}
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Name: apiServiceName, Namespace: namespaceDefault,
			Labels: map[string]string{discoveryv1.LabelServiceName: apiServiceName},
		},
		AddressType: family,
		Ports: []discoveryv1.EndpointPort{{
			Name: ptr.To("https"), Port: ptr.To(int32(s.config.AdvertisePort)), Protocol: ptr.To(corev1.ProtocolTCP),
		}},
	}
	for _, a := range addresses {
		want.Endpoints = append(want.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	slices := client.DiscoveryV1().EndpointSlices(namespaceDefault)
	have, err := slices.Get(ctx, apiServiceName, metav1.GetOptions{})
	if err == nil && have.AddressType != want.AddressType {
		// The address type cannot change.
		err = slices.Delete(ctx, apiServiceName, metav1.DeleteOptions{})
		if err == nil {
			err = apierrors.NewNotFound(discoveryv1.Resource("endpointslices"), apiServiceName)
		}
	}
	switch {
	case apierrors.IsNotFound(err):
		_, err = slices.Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			err = nil
		}
	case err == nil && (!equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) || !equality.Semantic.DeepEqual(have.Ports, want.Ports)):
		have.Endpoints, have.Ports = want.Endpoints, want.Ports
		_, err = slices.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil {
		return fmt.Errorf("write endpointslice %s: %w", apiServiceOwner, err)
	}
	return nil
}

// listAll reads every object of a kind, past the watch cache.
func listAll(ctx context.Context, st *store) (runtime.Object, error) {
	return st.List(ctx, &metainternalversion.ListOptions{})
}
