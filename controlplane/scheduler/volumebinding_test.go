package scheduler

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"
	"k8s.io/component-helpers/storage/volume"
	"k8s.io/utils/ptr"
)

func claim(name, class string, change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}},
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func boundTo(pv string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Spec.VolumeName, c.Status.Phase = pv, corev1.ClaimBound
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, volume.AnnBindCompleted, "yes")
	}
}

func selectedNode(name string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		metav1.SetMetaDataAnnotation(&c.ObjectMeta, volume.AnnSelectedNode, name)
	}
}

func volumeOn(name, class, size string, nodes ...string) *corev1.PersistentVolume {
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeSpec{
			StorageClassName: class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Capacity: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)},
		},
		Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeAvailable},
	}
	if len(nodes) > 0 {
		pv.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: nodes}},
		}}}}
	}
	return pv
}

func class(name, provisioner string, mode storagev1.VolumeBindingMode, nodes ...string) *storagev1.StorageClass {
	c := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner, VolumeBindingMode: &mode}
	if len(nodes) > 0 {
		c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{{Key: corev1.LabelHostname, Values: nodes}}}}
	}
	return c
}

func hostname(n *corev1.Node) { n.Labels = map[string]string{corev1.LabelHostname: n.Name} }

func using(claims ...string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Namespace = "ns"
		for _, c := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		}
	}
}

// stored is the storage that a scheduler of these objects has seen.
func stored(t *testing.T, objects ...apiruntime.Object) *storage {
	t.Helper()
	f := informers.NewSharedInformerFactory(fake.NewClientset(objects...), 0)
	s := newStorage(f, func() {})
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); f.Shutdown() })
	f.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), s.synced...) {
		t.Fatal("not synced")
	}
	return s
}

func TestVolumeBinding(t *testing.T) {
	delayed, immediate := storagev1.VolumeBindingWaitForFirstConsumer, storagev1.VolumeBindingImmediate
	objects := []apiruntime.Object{
		class("local-path", "gitk8s.dev/local-path", delayed), class("only-b", "gitk8s.dev/local-path", delayed, "b"),
		class("static", volume.NotSupportedProvisioner, delayed), class("at-once", "example.com/disk", immediate),
		volumeOn("bound-b", "", "1Gi", "b"), volumeOn("anywhere", "", "1Gi"), volumeOn("static-big", "static", "5Gi", "a", "b"), volumeOn("static-b", "static", "1Gi", "b"),
		claim("on-b", "", boundTo("bound-b")), claim("free", "", boundTo("anywhere")), claim("orphan", "", boundTo("absent")),
		claim("new", "local-path"), claim("new-2", "local-path"), claim("new-b", "only-b"), claim("made-on-a", "local-path", selectedNode("a")),
		claim("static-1", "static"), claim("static-2", "static"), claim("static-3", "static"), claim("at-once", "at-once"), claim("classless", ""),
		claim("huge", "static", func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Resources.Requests[corev1.ResourceStorage] = resource.MustParse("9Gi")
		}),
		claim("leaving", "local-path", func(c *corev1.PersistentVolumeClaim) {
			c.DeletionTimestamp, c.Finalizers = &metav1.Time{Time: time.Unix(1, 0)}, []string{"x"}
		}),
		claim("single", "", boundTo("anywhere"), func(c *corev1.PersistentVolumeClaim) {
			c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOncePod}
		}),
	}
	s := stored(t, objects...)
	const none = "node(s) didn't find available persistent volumes to bind"
	for _, c := range []struct {
		name   string
		claims []string
		// want is the node, or the reason; match and provision are of the plan.
		want             string
		match, provision int
	}{
		{"no claims", nil, "a", 0, 0},
		{"bound anywhere", []string{"free"}, "a", 0, 0},
		{"bound to b", []string{"on-b", "free"}, "b", 0, 0},
		{"bound to b, and made on a", []string{"on-b", "made-on-a"}, "0/2 nodes are available: 1 " + none + ", 1 node(s) had volume node affinity conflict.", 0, 0},
		{"provisioned", []string{"new", "new-2"}, "a", 0, 2},
		{"provisioned on b alone", []string{"new-b", "new"}, "b", 0, 2},
		{"being provisioned on a", []string{"made-on-a"}, "a", 0, 1},
		{"the smallest volume, on b", []string{"static-1", "on-b"}, "b", 1, 0},
		{"a volume on a", []string{"static-1", "made-on-a"}, "a", 1, 1},
		{"two volumes", []string{"static-1", "static-2"}, "b", 2, 0},
		{"more volumes than there are", []string{"static-1", "static-2", "static-3"}, "0/2 nodes are available: 2 " + none + ".", 0, 0},
		{"a volume that is too large", []string{"huge"}, "0/2 nodes are available: 2 " + none + ".", 0, 0},
		{"missing", []string{"absent"}, `0/2 nodes are available: persistentvolumeclaim "absent" not found.`, 0, 0},
		{"unbound", []string{"at-once"}, "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.", 0, 0},
		{"unbound without class", []string{"classless"}, "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.", 0, 0},
		{"being deleted", []string{"leaving"}, `0/2 nodes are available: persistentvolumeclaim "leaving" is being deleted.`, 0, 0},
		{"volume lost", []string{"orphan"}, `0/2 nodes are available: persistentvolumeclaim "orphan" bound to non-existent persistentvolume "absent".`, 0, 0},
		{"of another pod alone", []string{"single"}, "0/2 nodes are available: node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode.", 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			sched := &Scheduler{storage: s, cluster: cluster(node("a", "4", "4Gi", hostname), node("b", "1", "1Gi", hostname))}
			sched.cluster.Place(NewPod(pod("other", using("single"))), "a")
			p := NewPod(pod("p", using(c.claims...)))
			res, plan, err := sched.decide(p)
			got := res.Node
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Fatalf("got %q, want %q", got, c.want)
			}
			if plan == nil {
				plan = &volumePlan{}
			}
			if len(plan.match) != c.match || len(plan.provision) != c.provision {
				t.Errorf("plan %+v, want %d matches and %d provisioned", plan, c.match, c.provision)
			}
			if err == nil && c.match+c.provision > 0 && plan.node.Name != c.want {
				t.Errorf("the plan is for %s", plan.node.Name)
			}
		})
	}
}

func TestEphemeralClaims(t *testing.T) {
	p := pod("p", func(p *corev1.Pod) {
		p.Namespace, p.UID = "ns", "u1"
		p.Spec.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}}
	})
	ofPod := func(uid types.UID) *corev1.PersistentVolumeClaim {
		return claim("p-scratch", "local-path", func(c *corev1.PersistentVolumeClaim) {
			c.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: "p", UID: uid, Controller: ptr.To(true)}}
		})
	}
	local := class("local-path", "gitk8s.dev/local-path", storagev1.VolumeBindingWaitForFirstConsumer)
	for want, objects := range map[string][]apiruntime.Object{
		"": {local, ofPod("u1")},
		`0/1 nodes are available: waiting for ephemeral volume controller to create the persistentvolumeclaim "p-scratch".`: {local},
		`0/1 nodes are available: PVC ns/p-scratch was not created for pod ns/p (pod is not owner).`:                        {local, ofPod("u2")},
	} {
		got := ""
		if _, err := stored(t, objects...).volumesOf(p, cluster(node("a", "1", "1Gi")).Nodes()); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestBindVolumes: a claim is told its node, and waited for.
func TestBindVolumes(t *testing.T) {
	client := fake.NewClientset(
		class("local-path", "gitk8s.dev/local-path", storagev1.VolumeBindingWaitForFirstConsumer), class("static", volume.NotSupportedProvisioner, storagev1.VolumeBindingWaitForFirstConsumer),
		claim("new", "local-path"), claim("old", "static"), volumeOn("v", "static", "1Gi", "a"))
	f := informers.NewSharedInformerFactory(client, 0)
	s := New(client, f, record.NewFakeRecorder(8))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(func() { cancel(); f.Shutdown() })
	f.Start(ctx.Done())
	cache.WaitForCacheSync(ctx.Done(), s.synced...)
	plan := func() *volumePlan {
		v, err := s.storage.volumesOf(pod("p", using("new", "old")), nil)
		if err != nil {
			t.Fatal(err)
		}
		plan, why := v.on(node("a", "1", "1Gi", hostname))
		if why != "" {
			t.Fatal(why)
		}
		return plan
	}
	awaitClaim := func(name string, cond func(*corev1.PersistentVolumeClaim) bool) *corev1.PersistentVolumeClaim {
		t.Helper()
		for {
			changed := s.storage.next()
			if c, err := s.storage.claims.PersistentVolumeClaims("ns").Get(name); err == nil && cond(c) {
				return c.DeepCopy()
			}
			select {
			case <-changed:
			case <-ctx.Done():
				t.Fatalf("claim %s: %v", name, ctx.Err())
			}
		}
	}
	write := func(c *corev1.PersistentVolumeClaim) {
		t.Helper()
		if _, err := client.CoreV1().PersistentVolumeClaims("ns").Update(ctx, c, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	selected := func(c *corev1.PersistentVolumeClaim) bool { return c.Annotations[volume.AnnSelectedNode] == "a" }

	// The provisioner gives up: the pod is placed anew.
	done := make(chan error, 1)
	go func() { done <- s.bindVolumes(ctx, plan()) }()
	c := awaitClaim("new", selected)
	delete(c.Annotations, volume.AnnSelectedNode)
	c.ResourceVersion = "2"
	write(c)
	if err := <-done; err == nil {
		t.Error("bound although provisioning failed")
	}

	awaitClaim("new", func(c *corev1.PersistentVolumeClaim) bool { return c.ResourceVersion == "2" })

	// All is bound.
	go func() { done <- s.bindVolumes(ctx, plan()) }()
	c = awaitClaim("new", selected)
	if _, err := client.CoreV1().PersistentVolumes().Create(ctx, volumeOn("made", "local-path", "1Gi", "a"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	boundTo("made")(c)
	write(c)
	old := awaitClaim("old", func(*corev1.PersistentVolumeClaim) bool { return true })
	boundTo("v")(old)
	write(old)
	if err := <-done; err != nil {
		t.Error(err)
	}
	pv, err := client.CoreV1().PersistentVolumes().Get(ctx, "v", metav1.GetOptions{})
	if err != nil || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.Name != "old" {
		t.Errorf("the volume is kept for %+v: %v", pv.Spec.ClaimRef, err)
	}

	// A volume elsewhere is of no use.
	wait := volumeWait{storage: s.storage, plan: &volumePlan{node: node("b", "1", "1Gi", hostname), provision: []*corev1.PersistentVolumeClaim{c}}}
	if done, err := wait.over(); err == nil {
		t.Errorf("a volume on another node is taken for bound: %v", done)
	}
}
