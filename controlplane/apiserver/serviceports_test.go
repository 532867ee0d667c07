package apiserver_test

import (
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/controlplane/apiserver"
	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
)

func testServicePorts(t *testing.T, client kubernetes.Interface) {
	services := client.CoreV1().Services("default")
	create := func(name string, spec corev1.ServiceSpec, dryRun ...string) (*corev1.Service, error) {
		if spec.Ports == nil {
			spec.Ports = []corev1.ServicePort{{Port: 80}}
		}
		return services.Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{DryRun: dryRun})
	}
	must := func(svc *corev1.Service, err error) *corev1.Service {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return svc
	}
	patch := func(name, body string) (*corev1.Service, error) {
		return services.Patch(t.Context(), name, types.MergePatchType, []byte(body), metav1.PatchOptions{})
	}
	nodePort := func(port int32) corev1.ServiceSpec {
		return corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: port}}}
	}
	explicit := nodePort(30080)
	must(create("np", explicit, metav1.DryRunAll))
	must(create("np", explicit))
	for _, dryRun := range [][]string{nil, {metav1.DryRunAll}} {
		_, err := create("np2", explicit, dryRun...)
		if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated") {
			t.Errorf("a port in use: %v", err)
		}
	}
	if _, err := create("np2", nodePort(29999)); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "The range of valid ports is 30000-32767") {
		t.Errorf("a port out of range: %v", err)
	}
	// What is not sent is kept; the same port by two protocols is one node port.
	two := must(create("two", corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{
		{Name: "a", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "b", Port: 53, Protocol: corev1.ProtocolTCP}, {Name: "c", Port: 80},
	}}))
	ports := two.Spec.Ports
	if ports[0].NodePort != ports[1].NodePort || ports[2].NodePort == ports[0].NodePort || ports[0].NodePort < 30086 {
		t.Errorf("%+v", ports)
	}
	kept := must(patch("two", `{"spec":{"ports":[{"name":"c","port":81},{"name":"a","port":53,"protocol":"UDP"}]}}`)).Spec.Ports
	if kept[0].NodePort != ports[2].NodePort || kept[1].NodePort != ports[0].NodePort {
		t.Errorf("%+v after %+v", kept, ports)
	}
	// Another type gives them back, and so does deletion.
	if svc := must(patch("np", `{"spec":{"type":"ClusterIP"}}`)); svc.Spec.Ports[0].NodePort != 0 || svc.Spec.ExternalTrafficPolicy != "" {
		t.Errorf("%+v", svc.Spec)
	}
	must(create("np-again", explicit))
	if err := services.Delete(t.Context(), "np-again", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	must(create("np-again", explicit))

	// A balancer: no node ports where none are wanted, a port for its health check.
	lb := corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, AllocateLoadBalancerNodePorts: ptr.To(false), ExternalTrafficPolicy: corev1.ServiceExternalTrafficPolicyLocal}
	local := must(create("lb", lb))
	if local.Spec.Ports[0].NodePort != 0 || local.Spec.HealthCheckNodePort < 30000 {
		t.Errorf("%+v", local.Spec)
	}
	if _, err := patch("lb", `{"spec":{"healthCheckNodePort":30099}}`); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "spec.healthCheckNodePort: Invalid value: 30099: field is immutable") {
		t.Errorf("another health check port: %v", err)
	}
	if svc := must(patch("lb", `{"spec":{"externalTrafficPolicy":"Cluster","allocateLoadBalancerNodePorts":true}}`)); svc.Spec.HealthCheckNodePort != 0 || svc.Spec.Ports[0].NodePort == 0 {
		t.Errorf("%+v", svc.Spec)
	}
	if _, err := create("taken", nodePort(local.Spec.HealthCheckNodePort)); err != nil {
		t.Errorf("a health check port given back: %v", err)
	}
	// A status that is written with an old spec takes and gives nothing.
	stale := must(services.Get(t.Context(), "np-again", metav1.GetOptions{}))
	stale.Spec.Ports[0].NodePort = 30081
	if svc, err := services.UpdateStatus(t.Context(), stale, metav1.UpdateOptions{}); err != nil || svc.Spec.Ports[0].NodePort != 30080 {
		t.Errorf("%v %v", svc, err)
	}
	if _, err := create("after", explicit); !apierrors.IsInvalid(err) {
		t.Errorf("a port in use: %v", err)
	}
	must(create("free", nodePort(30081)))
}

// TestServicePortsAreRepaired: a start puts right what a crash, or a store put back
// from a copy, has left of allocations.
func TestServicePortsAreRepaired(t *testing.T) {
	var etcd *clientv3.Client
	first := apiservertest.StartWith(t, func(c *apiserver.Config) { etcd = c.Etcd })
	create := func(cp *apiservertest.ControlPlane, name string, port int32) error {
		_, err := kubernetes.NewForConfigOrDie(cp.Admin).CoreV1().Services("default").Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeNodePort, Ports: []corev1.ServicePort{{Port: 80, NodePort: port}}},
		}, metav1.CreateOptions{})
		return err
	}
	if err := create(first, "kept", 30090); err != nil {
		t.Fatal(err)
	}
	const prefix = "/gitk8s/nodeports/"
	if resp, err := etcd.Delete(t.Context(), prefix+"30090"); err != nil || resp.Deleted != 1 {
		t.Fatal(resp, err)
	}
	if _, err := etcd.Put(t.Context(), prefix+"30091", "default/gone/uid 1"); err != nil {
		t.Fatal(err)
	}
	if err := create(first, "early", 30091); !apierrors.IsInvalid(err) {
		t.Errorf("a port that has an owner: %v", err)
	}
	second := apiservertest.StartWith(t, func(c *apiserver.Config) { c.Etcd = etcd })
	if err := create(second, "twice", 30090); !apierrors.IsInvalid(err) {
		t.Errorf("a port whose key was lost: %v", err)
	}
	if err := create(second, "late", 30091); err != nil {
		t.Errorf("a port of a service that is gone: %v", err)
	}
}
