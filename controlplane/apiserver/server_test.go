package apiserver_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"gitk8s.dev/gitk8s/controlplane/apiserver/apiservertest"
	"gitk8s.dev/gitk8s/controlplane/pki"
)

const limit = 30 * time.Second

func eventually(t *testing.T, what string, condition func(ctx context.Context) (bool, error)) {
	t.Helper()
	if err := wait.PollUntilContextTimeout(t.Context(), 5*time.Millisecond, limit, true, condition); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func newPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "gitk8s.local/web:v1"}}},
	}
}

func createPod(t *testing.T, client kubernetes.Interface, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, err := client.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func bindPod(t *testing.T, client kubernetes.Interface, pod, node string) {
	t.Helper()
	err := client.CoreV1().Pods("default").Bind(t.Context(), &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Name: pod}, Target: corev1.ObjectReference{Kind: "Node", Name: node},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// TestServer runs its parts against one server.
func TestServer(t *testing.T) {
	begin := time.Now()
	cp := apiservertest.StartWith(t, nil)
	t.Logf("control plane ready after %s", time.Since(begin))
	client := kubernetes.NewForConfigOrDie(cp.Admin)
	t.Run("bootstrap", func(t *testing.T) { testBootstrap(t, client) })
	t.Run("anonymous", func(t *testing.T) { testAnonymous(t, cp) })
	t.Run("pod life", func(t *testing.T) { testPodLife(t, client) })
	t.Run("status is apart", func(t *testing.T) { testStatusIsApart(t, client) })
	t.Run("watch", func(t *testing.T) { testWatch(t, client) })
	t.Run("service addresses", func(t *testing.T) { testServices(t, client) })
	t.Run("service ports", func(t *testing.T) { testServicePorts(t, client) })
	t.Run("apply", func(t *testing.T) { testApply(t, client) })
	t.Run("field validation", func(t *testing.T) { testFieldValidation(t, client) })
	t.Run("scale", func(t *testing.T) { testScale(t, client) })
	t.Run("in-process client", func(t *testing.T) { testInProcess(t, cp) })
	t.Run("nodes", func(t *testing.T) { testNodeRights(t, cp, client) })
}

func testBootstrap(t *testing.T, client kubernetes.Interface) {
	for _, name := range []string{"default", "kube-system", "kube-public", "kube-node-lease"} {
		ns, err := client.CoreV1().Namespaces().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if ns.Labels[corev1.LabelMetadataName] != name || ns.Status.Phase != corev1.NamespaceActive || len(ns.Spec.Finalizers) != 1 {
			t.Errorf("namespace %+v", ns)
		}
	}
	svc, err := client.CoreV1().Services("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || svc.Spec.ClusterIP != "10.43.0.1" {
		t.Errorf("service kubernetes: %v %v", svc.Spec.ClusterIP, err)
	}
	slice, err := client.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil || len(slice.Endpoints) != 1 || slice.Labels[discoveryv1.LabelServiceName] != "kubernetes" {
		t.Errorf("endpointslice kubernetes: %+v %v", slice, err)
	}
	err = client.CoreV1().Namespaces().Delete(t.Context(), "default", metav1.DeleteOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("deleting the default namespace: %v", err)
	}
}

func testAnonymous(t *testing.T, cp *apiservertest.ControlPlane) {
	anonymous := http.Client{Transport: &http.Transport{TLSClientConfig: tlsConfig(t, cp)}, Timeout: limit}
	defer anonymous.CloseIdleConnections()
	for path, want := range map[string]int{
		"/healthz": 200, "/livez": 200, "/readyz": 200, "/version": 200,
		"/api": 401, "/api/v1/pods": 401, "/metrics": 401, "/openapi/v2": 401, "/": 401,
	} {
		resp, err := anonymous.Get(cp.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	stranger := rest.AnonymousClientConfig(cp.Admin)
	stranger.BearerToken = "wrong"
	_, err := kubernetes.NewForConfigOrDie(stranger).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsUnauthorized(err) {
		t.Errorf("a wrong token: %v", err)
	}
	// A certificate of the authority alone gives no rights.
	pair, err := cp.CA.Issue(pki.Component("nobody", "nobody"))
	if err != nil {
		t.Fatal(err)
	}
	nobody := kubernetes.NewForConfigOrDie(cp.CA.RESTConfig(cp.URL, pair))
	if _, err := nobody.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a user without rights: %v", err)
	}
}

func testPodLife(t *testing.T, client kubernetes.Interface) {
	pods := client.CoreV1().Pods("default")
	pod := createPod(t, client, newPod("life"))
	if pod.Status.Phase != corev1.PodPending || pod.Spec.ServiceAccountName != "default" || len(pod.Spec.Tolerations) != 2 || pod.Generation != 1 {
		t.Errorf("new pod %+v", pod)
	}
	bindPod(t, client, "life", "n1")
	pod, err := pods.Get(t.Context(), "life", metav1.GetOptions{})
	if err != nil || pod.Spec.NodeName != "n1" || pod.Status.Conditions[0].Type != corev1.PodScheduled {
		t.Fatalf("bound pod %+v %v", pod, err)
	}
	err = pods.Bind(t.Context(), &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: "life"}, Target: corev1.ObjectReference{Name: "n2"}}, metav1.CreateOptions{})
	if !apierrors.IsConflict(err) {
		t.Errorf("a second binding: %v", err)
	}
	list, err := pods.List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=n1"})
	if err != nil || len(list.Items) != 1 {
		t.Errorf("pods of n1: %d %v", len(list.Items), err)
	}
	if err := pods.Delete(t.Context(), "life", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	pod, err = pods.Get(t.Context(), "life", metav1.GetOptions{})
	if err != nil || pod.DeletionTimestamp == nil || *pod.DeletionGracePeriodSeconds != 30 {
		t.Fatalf("a pod on a node must end gracefully: %+v %v", pod.ObjectMeta, err)
	}
	zero := int64(0)
	if err := pods.Delete(t.Context(), "life", metav1.DeleteOptions{GracePeriodSeconds: &zero}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Get(t.Context(), "life", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("after the final delete: %v", err)
	}

	createPod(t, client, newPod("unbound"))
	if err := pods.Delete(t.Context(), "unbound", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := pods.Get(t.Context(), "unbound", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("a pod on no node must go at once: %v", err)
	}
}

func testStatusIsApart(t *testing.T, client kubernetes.Interface) {
	pods := client.CoreV1().Pods("default")
	pod := createPod(t, client, newPod("apart"))
	changed := pod.DeepCopy()
	changed.Status.Phase = corev1.PodRunning
	changed.Spec.Containers[0].Image = "gitk8s.local/web:v2"
	after, err := pods.UpdateStatus(t.Context(), changed, metav1.UpdateOptions{})
	if err != nil || after.Status.Phase != corev1.PodRunning || after.Spec.Containers[0].Image != "gitk8s.local/web:v1" || after.Generation != 1 {
		t.Fatalf("status update: %+v %v", after, err)
	}
	changed = after.DeepCopy()
	changed.Status.Phase = corev1.PodFailed
	changed.Spec.Containers[0].Image = "gitk8s.local/web:v2"
	after, err = pods.Update(t.Context(), changed, metav1.UpdateOptions{})
	if err != nil || after.Status.Phase != corev1.PodRunning || after.Spec.Containers[0].Image != "gitk8s.local/web:v2" || after.Generation != 2 {
		t.Fatalf("spec update: %+v %v", after, err)
	}
	changed = after.DeepCopy()
	changed.Spec.Containers[0].Name = "other"
	if _, err = pods.Update(t.Context(), changed, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("a change of a container's name: %v", err)
	}
}

func testWatch(t *testing.T, client kubernetes.Interface) {
	list, err := client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := client.CoreV1().ConfigMaps("default").Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "watched"}, Data: map[string]string{"a": "1"}}
	if _, err := client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := client.CoreV1().ConfigMaps("default").Delete(t.Context(), "watched", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []watch.EventType{watch.Added, watch.Deleted} {
		select {
		case e := <-w.ResultChan():
			if e.Type != want {
				t.Errorf("event %s, want %s", e.Type, want)
			}
		case <-time.After(limit):
			t.Fatal("no event")
		}
	}
}

func testServices(t *testing.T, client kubernetes.Interface) {
	services := client.CoreV1().Services("default")
	create := func(name, ip string, dryRun ...string) (*corev1.Service, error) {
		return services.Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{DryRun: dryRun})
	}
	if _, err := create("dry", "10.43.7.7", metav1.DryRunAll); err != nil {
		t.Errorf("dry run: %v", err)
	}
	a, err := create("a", "10.43.7.7")
	if err != nil || a.Spec.ClusterIP != "10.43.7.7" || a.Spec.IPFamilies[0] != corev1.IPv4Protocol {
		t.Fatalf("requested address: %+v %v", a.Spec, err)
	}
	if _, err := create("b", "10.43.7.7"); !apierrors.IsInvalid(err) {
		t.Errorf("an address in use: %v", err)
	}
	for _, outside := range []string{"10.44.0.1", "10.43.0.0", "10.43.0.1", "10.43.255.255"} {
		if _, err := create("b", outside); !apierrors.IsInvalid(err) {
			t.Errorf("address %s: %v", outside, err)
		}
	}
	b, err := create("b", "")
	if err != nil || !strings.HasPrefix(b.Spec.ClusterIP, "10.43.") {
		t.Fatalf("allocated address: %v %v", b.Spec.ClusterIP, err)
	}
	if h, err := create("headless", corev1.ClusterIPNone); err != nil || h.Spec.ClusterIP != corev1.ClusterIPNone {
		t.Errorf("headless: %+v %v", h, err)
	}
	patched, err := services.Patch(t.Context(), "b", types.MergePatchType, []byte(`{"spec":{"clusterIP":"10.43.9.9"}}`), metav1.PatchOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("a changed address: %v %v", patched.Spec.ClusterIP, err)
	}
	if err := services.Delete(t.Context(), "a", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := create("again", "10.43.7.7"); err != nil {
		t.Errorf("an address given back: %v", err)
	}
}

const deployment = `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"%s"},"spec":{
"selector":{"matchLabels":{"app":"web"}},"template":{"metadata":{"labels":{"app":"web"}},
"spec":{"containers":[{"name":"web","image":"gitk8s.local/web:v1"}]}}}}`

func testApply(t *testing.T, client kubernetes.Interface) {
	body := []byte(strings.Replace(deployment, "%s", "applied", 1))
	deployments := client.AppsV1().Deployments("default")
	apply := func(manager string, body []byte) (*appsv1.Deployment, error) {
		return deployments.Patch(t.Context(), "applied", types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: manager})
	}
	first, err := apply("one", body)
	if err != nil {
		t.Fatal(err)
	}
	second, err := apply("one", body)
	if err != nil || second.ResourceVersion != first.ResourceVersion {
		t.Errorf("applying the same again wrote %s after %s: %v", second.ResourceVersion, first.ResourceVersion, err)
	}
	if _, err := apply("two", []byte(strings.Replace(string(body), "web:v1", "web:v2", 1))); !apierrors.IsConflict(err) {
		t.Errorf("a field of another manager: %v", err)
	}
	if *first.Spec.Replicas != 1 || first.Spec.Strategy.RollingUpdate.MaxSurge.StrVal != "25%" || first.Generation != 1 {
		t.Errorf("defaults: %+v", first.Spec)
	}
}

func testFieldValidation(t *testing.T, client kubernetes.Interface) {
	body := strings.Replace(strings.Replace(deployment, "%s", "strict", 1), `"spec":{`, `"spec":{"replica":2,`, 1)
	post := func(mode string) error {
		return client.AppsV1().RESTClient().Post().Namespace("default").Resource("deployments").
			Param("fieldValidation", mode).SetHeader("Content-Type", "application/json").Body([]byte(body)).Do(t.Context()).Error()
	}
	if err := post("Strict"); err == nil || !strings.Contains(err.Error(), `unknown field "spec.replica"`) {
		t.Errorf("strict: %v", err)
	}
	if err := post("Warn"); err != nil {
		t.Errorf("warn: %v", err)
	}
}

func testScale(t *testing.T, client kubernetes.Interface) {
	deployments := client.AppsV1().Deployments("default")
	body := []byte(strings.Replace(deployment, "%s", "scaled", 1))
	if _, err := deployments.Patch(t.Context(), "scaled", types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "one"}); err != nil {
		t.Fatal(err)
	}
	scale, err := deployments.GetScale(t.Context(), "scaled", metav1.GetOptions{})
	if err != nil || scale.Status.Selector != "app=web" {
		t.Fatalf("scale %+v %v", scale, err)
	}
	scale.Spec.Replicas = 4
	if _, err := deployments.UpdateScale(t.Context(), "scaled", scale, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	d, err := deployments.Get(t.Context(), "scaled", metav1.GetOptions{})
	if err != nil || *d.Spec.Replicas != 4 || d.Generation != 2 {
		t.Errorf("scaled: %+v %v", d.Spec, err)
	}
}

func testInProcess(t *testing.T, cp *apiservertest.ControlPlane) {
	client := kubernetes.NewForConfigOrDie(cp.Server.ClientConfig(pki.UserScheduler))
	w, err := client.CoreV1().Pods("").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w.Stop()
	_, err = client.CoreV1().Secrets("default").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("the scheduler reads Secrets: %v", err)
	}
}

// testNodeRights: a node reads and writes only what concerns its own pods.
func testNodeRights(t *testing.T, cp *apiservertest.ControlPlane, admin kubernetes.Interface) {
	pair, err := cp.CA.Issue(pki.NodeClient("na"))
	if err != nil {
		t.Fatal(err)
	}
	node := kubernetes.NewForConfigOrDie(cp.CA.RESTConfig(cp.URL, pair))
	for _, name := range []string{"pa", "pb"} {
		_, err := admin.CoreV1().Secrets("default").Create(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "of-" + name}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pod := newPod(name)
		pod.Spec.Volumes = []corev1.Volume{{Name: "s", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "of-" + name}}}}
		createPod(t, admin, pod)
		bindPod(t, admin, name, "n"+name[1:])
	}
	pods, secrets := node.CoreV1().Pods("default"), node.CoreV1().Secrets("default")
	allowed := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused := func(what string, err error) {
		t.Helper()
		if !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	pa, err := pods.Get(t.Context(), "pa", metav1.GetOptions{})
	allowed("own pod", err)
	_, err = pods.Get(t.Context(), "pb", metav1.GetOptions{})
	refused("pod of another node", err)
	_, err = secrets.Get(t.Context(), "of-pa", metav1.GetOptions{})
	allowed("secret of own pod", err)
	_, err = secrets.Get(t.Context(), "of-pb", metav1.GetOptions{})
	refused("secret of another node's pod", err)
	_, err = secrets.List(t.Context(), metav1.ListOptions{})
	refused("all secrets", err)
	_, err = secrets.List(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=of-pa"})
	allowed("list of one own secret", err)
	_, err = node.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=na"})
	allowed("own pods", err)
	_, err = node.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=nb"})
	refused("pods of another node", err)
	_, err = node.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	refused("all pods", err)
	pa.Status.Phase = corev1.PodRunning
	_, err = pods.UpdateStatus(t.Context(), pa, metav1.UpdateOptions{})
	allowed("status of own pod", err)
	_, err = pods.Update(t.Context(), pa, metav1.UpdateOptions{})
	refused("spec of own pod", err)
	_, err = node.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "na"}}, metav1.CreateOptions{})
	allowed("own node", err)
	_, err = node.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "nc"}}, metav1.CreateOptions{})
	refused("another node", err)
	_, err = node.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})
	refused("a config map", err)
	refused("delete of another node's pod", pods.Delete(t.Context(), "pb", metav1.DeleteOptions{}))
	zero := int64(0)
	allowed("final delete of own pod", pods.Delete(t.Context(), "pa", metav1.DeleteOptions{GracePeriodSeconds: &zero}))
	_, err = secrets.Get(t.Context(), "of-pa", metav1.GetOptions{})
	refused("secret after the pod has gone", err)
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}
