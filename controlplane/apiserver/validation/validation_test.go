package validation

import (
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"gitk8s.dev/gitk8s/api/v1alpha1"
	"gitk8s.dev/gitk8s/controlplane/apiserver/defaults"
)

func read[T any](t *testing.T, text string) *T {
	t.Helper()
	out := new(T)
	if err := yaml.UnmarshalStrict([]byte(text), out); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return out
}

// match checks that the errors are those wanted, each given by how it begins.
func match(t *testing.T, errs field.ErrorList, want ...string) {
	t.Helper()
	if len(errs) != len(want) {
		t.Fatalf("got %v, want %q", errs, want)
	}
	for i, w := range want {
		if !strings.HasPrefix(errs[i].Error(), w) {
			t.Errorf("got %q, want %q", errs[i].Error(), w)
		}
	}
}

const good = "name: a, image: i"

func TestPodSpec(t *testing.T) {
	container := func(extra string) string { return "{containers: [{" + good + ", " + extra + "}]}" }
	tests := map[string]struct {
		spec string
		want []string
	}{
		"good":            {"{containers: [{" + good + "}]}", nil},
		"no containers":   {"{}", []string{"spec.containers: Required value"}},
		"no name":         {"{containers: [{image: i}]}", []string{"spec.containers[0].name: Required value"}},
		"bad name":        {"{containers: [{name: A_b, image: i}]}", []string{`spec.containers[0].name: Invalid value: "A_b"`}},
		"no image":        {"{containers: [{name: a}]}", []string{"spec.containers[0].image: Required value"}},
		"same names":      {"{containers: [{" + good + "}, {" + good + "}]}", []string{`spec.containers[1].name: Duplicate value: "a"`}},
		"init same name":  {"{containers: [{" + good + "}], initContainers: [{" + good + "}]}", []string{`spec.initContainers[0].name: Duplicate value: "a"`}},
		"init with probe": {"{containers: [{" + good + "}], initContainers: [{name: b, image: i, readinessProbe: {tcpSocket: {port: 1}}}]}", []string{"spec.initContainers[0].readinessProbe: Forbidden"}},
		"sidecar":         {"{containers: [{" + good + "}], initContainers: [{name: b, image: i, restartPolicy: Always, readinessProbe: {tcpSocket: {port: 1}}}]}", nil},
		"pull policy":     {container("imagePullPolicy: Sometimes"), []string{`spec.containers[0].imagePullPolicy: Unsupported value: "Sometimes"`}},
		"port":            {container("ports: [{containerPort: 70000}]"), []string{"spec.containers[0].ports[0].containerPort: Invalid value: 70000"}},
		"no port":         {container("ports: [{name: http}]"), []string{"spec.containers[0].ports[0].containerPort: Required value"}},
		"port names":      {container("ports: [{containerPort: 1, name: p}, {containerPort: 2, name: p}]"), []string{`spec.containers[0].ports[1].name: Duplicate value: "p"`}},
		"host ports":      {container("ports: [{containerPort: 1, hostPort: 9}, {containerPort: 2, hostPort: 9}]"), []string{"spec.containers[0].ports[1].hostPort: Duplicate value"}},
		"env name":        {container("env: [{value: x}]"), []string{"spec.containers[0].env[0].name: Required value"}},
		"env equals":      {container("env: [{name: \"a=b\"}]"), []string{"spec.containers[0].env[0].name: Invalid value"}},
		"env twice":       {container("env: [{name: A, value: x, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]"), []string{"spec.containers[0].env[0].valueFrom: Invalid value"}},
		"env field":       {container("env: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.x}}}]"), []string{`spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "spec.x"`}},
		"env label":       {container("env: [{name: A, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}]"), nil},
		"env resource":    {container("env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.gpu}}}]"), []string{"spec.containers[0].env[0].valueFrom.resourceFieldRef.resource: Unsupported value"}},
		"envFrom":         {container("envFrom: [{prefix: A}]"), []string{"spec.containers[0].envFrom[0]: Invalid value"}},
		"mount":           {container("volumeMounts: [{name: v, mountPath: /v}]"), []string{`spec.containers[0].volumeMounts[0].name: Not found: "v"`}},
		"mount path":      {"{volumes: [{name: v}], containers: [{" + good + ", volumeMounts: [{name: v, mountPath: /v}, {name: v, mountPath: /v, subPath: ../x}]}]}", []string{"spec.containers[0].volumeMounts[1].mountPath: Invalid value", "spec.containers[0].volumeMounts[1].subPath: Invalid value"}},
		"limits":          {container("resources: {requests: {cpu: 2}, limits: {cpu: 1}}"), []string{`spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`}},
		"negative":        {container("resources: {limits: {memory: \"-1\"}}"), []string{"spec.containers[0].resources.limits[memory]: Invalid value"}},
		"resource name":   {container("resources: {limits: {gpu: 1}}"), []string{"spec.containers[0].resources.limits[gpu]: Invalid value"}},
		"no handler":      {container("livenessProbe: {periodSeconds: 1}"), []string{"spec.containers[0].livenessProbe: Required value: must specify a handler type"}},
		"two handlers":    {container("livenessProbe: {exec: {command: [a]}, tcpSocket: {port: 1}}"), []string{"spec.containers[0].livenessProbe.tcpSocket: Forbidden"}},
		"liveness twice":  {container("livenessProbe: {exec: {command: [a]}, successThreshold: 2}"), []string{"spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1"}},
		"no command":      {container("livenessProbe: {exec: {}}"), []string{"spec.containers[0].livenessProbe.exec.command: Required value"}},
		"volume twice":    {"{volumes: [{name: v}, {name: v}], containers: [{" + good + "}]}", []string{`spec.volumes[1].name: Duplicate value: "v"`}},
		"two sources":     {"{volumes: [{name: v, emptyDir: {}, secret: {secretName: s}}], containers: [{" + good + "}]}", []string{"spec.volumes[0].secret: Forbidden"}},
		"secret name":     {"{volumes: [{name: v, secret: {}}], containers: [{" + good + "}]}", []string{"spec.volumes[0].secret.secretName: Required value"}},
		"item path":       {"{volumes: [{name: v, configMap: {name: c, items: [{key: k, path: ../p}]}}], containers: [{" + good + "}]}", []string{"spec.volumes[0].configMap.items[0].path: Invalid value"}},
		"host path":       {"{volumes: [{name: v, hostPath: {path: /a/../b}}], containers: [{" + good + "}]}", []string{"spec.volumes[0].hostPath.path: Invalid value"}},
		"restart policy":  {"{restartPolicy: Maybe, containers: [{" + good + "}]}", []string{"spec.restartPolicy: Unsupported value"}},
		"dns":             {"{dnsPolicy: None, containers: [{" + good + "}]}", []string{"spec.dnsConfig: Required value"}},
		"toleration":      {"{tolerations: [{key: a, operator: Exists, value: v}], containers: [{" + good + "}]}", []string{"spec.tolerations[0].operator: Invalid value"}},
		"affinity":        {"{affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}, containers: [{" + good + "}]}", []string{"spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value"}},
		"spread":          {"{topologySpreadConstraints: [{maxSkew: 0, topologyKey: z, whenUnsatisfiable: DoNotSchedule}], containers: [{" + good + "}]}", []string{"spec.topologySpreadConstraints[0].maxSkew: Invalid value"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			spec := read[corev1.PodSpec](t, tt.spec)
			defaults.PodSpec(spec)
			match(t, PodSpec(spec, field.NewPath("spec")), tt.want...)
		})
	}
}

func TestPodUpdate(t *testing.T) {
	const base = "spec: {containers: [{name: a, image: i}], tolerations: [{key: k, operator: Exists}]}"
	tests := map[string]struct {
		text string
		want []string
	}{
		"nothing":          {base, nil},
		"image":            {"spec: {containers: [{name: a, image: j}], tolerations: [{key: k, operator: Exists}]}", nil},
		"toleration":       {"spec: {containers: [{name: a, image: i}], tolerations: [{key: k, operator: Exists}, {key: l, operator: Exists}]}", nil},
		"lost toleration":  {"spec: {containers: [{name: a, image: i}]}", []string{"spec.tolerations: Forbidden"}},
		"container":        {"spec: {containers: [{name: a, image: i}, {name: b, image: i}], tolerations: [{key: k, operator: Exists}]}", []string{"spec.containers: Forbidden"}},
		"command":          {"spec: {containers: [{name: a, image: i, command: [x]}], tolerations: [{key: k, operator: Exists}]}", []string{"spec: Forbidden: pod updates may not change fields other than"}},
		"node":             {"spec: {nodeName: n, containers: [{name: a, image: i}], tolerations: [{key: k, operator: Exists}]}", []string{"spec: Forbidden"}},
		"active deadline":  {"spec: {activeDeadlineSeconds: 5, containers: [{name: a, image: i}], tolerations: [{key: k, operator: Exists}]}", nil},
		"zero for an hour": {"spec: {activeDeadlineSeconds: 0, containers: [{name: a, image: i}], tolerations: [{key: k, operator: Exists}]}", []string{"spec.activeDeadlineSeconds: Invalid value"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			old, now := read[corev1.Pod](t, base), read[corev1.Pod](t, tt.text)
			defaults.Pod(old)
			defaults.Pod(now)
			match(t, Pod(now, old), tt.want...)
		})
	}
}

func TestDeployment(t *testing.T) {
	const template = "selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{" + good + "}]}}"
	tests := map[string]struct {
		spec string
		want []string
	}{
		"good":         {template, nil},
		"negative":     {template + ", replicas: -1", []string{"spec.replicas: Invalid value"}},
		"no selector":  {"template: {spec: {containers: [{" + good + "}]}}", []string{"spec.selector: Required value"}},
		"mismatch":     {"selector: {matchLabels: {app: b}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{" + good + "}]}}", []string{"spec.template.metadata.labels: Invalid value"}},
		"both zero":    {template + ", strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}", []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"}},
		"zero percent": {template + ", strategy: {rollingUpdate: {maxSurge: 0%, maxUnavailable: 0}}", []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value"}},
		"no percent":   {template + ", strategy: {rollingUpdate: {maxSurge: many}}", []string{"spec.strategy.rollingUpdate.maxSurge: Invalid value"}},
		"over 100":     {template + ", strategy: {rollingUpdate: {maxUnavailable: 101%}}", []string{"spec.strategy.rollingUpdate.maxUnavailable: Invalid value"}},
		"recreate":     {template + ", strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}", []string{"spec.strategy.rollingUpdate: Forbidden"}},
		"strategy":     {template + ", strategy: {type: Canary}", []string{"spec.strategy: Unsupported value"}},
		"deadline":     {template + ", minReadySeconds: 9, progressDeadlineSeconds: 9", []string{"spec.progressDeadlineSeconds: Invalid value"}},
		"never":        {"selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {restartPolicy: Never, containers: [{" + good + "}]}}", []string{"spec.template.spec.restartPolicy: Unsupported value"}},
		"container":    {"selector: {matchLabels: {app: a}}, template: {metadata: {labels: {app: a}}, spec: {containers: [{image: i}]}}", []string{"spec.template.spec.containers[0].name: Required value"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := read[appsv1.Deployment](t, "spec: {"+tt.spec+"}")
			defaults.Deployment(d)
			match(t, Deployment(d, nil), tt.want...)
		})
	}
	old, now := read[appsv1.Deployment](t, "spec: {"+template+"}"), read[appsv1.Deployment](t, "spec: {"+strings.ReplaceAll(template, "app: a", "app: b")+"}")
	defaults.Deployment(old)
	defaults.Deployment(now)
	match(t, Deployment(now, old), "spec.selector: Invalid value")
}

func TestService(t *testing.T) {
	tests := map[string]struct {
		spec string
		want []string
	}{
		"good":            {"ports: [{port: 80}]", nil},
		"no ports":        {"selector: {a: b}", []string{"spec.ports: Required value"}},
		"headless":        {"clusterIP: None", nil},
		"port":            {"ports: [{port: 0}]", []string{"spec.ports[0].port: Invalid value: 0"}},
		"names":           {"ports: [{port: 80}, {port: 81, name: b}]", []string{"spec.ports[0].name: Required value"}},
		"same port":       {"ports: [{port: 80, name: a}, {port: 80, name: b}]", []string{"spec.ports[1]: Duplicate value"}},
		"target":          {"ports: [{port: 80, targetPort: Much_too-long_for_a_port}]", []string{"spec.ports[0].targetPort: Invalid value", "spec.ports[0].targetPort: Invalid value"}},
		"type":            {"type: Magic, ports: [{port: 80}]", []string{"spec.type: Unsupported value"}},
		"external":        {"type: ExternalName", []string{"spec.externalName: Required value"}},
		"headless node":   {"type: NodePort, clusterIP: None, ports: [{port: 80}]", []string{"spec.clusterIPs[0]: Invalid value"}},
		"affinity":        {"sessionAffinity: Cookie, ports: [{port: 80}]", []string{"spec.sessionAffinity: Unsupported value"}},
		"both families":   {"ipFamilies: [IPv6, IPv4], clusterIP: 'fd00::1', clusterIPs: ['fd00::1', 10.43.0.9], ports: [{port: 80}]", nil},
		"no family":       {"ipFamilies: [IPv5], ports: [{port: 80}]", []string{"spec.ipFamilies[0]: Unsupported value"}},
		"twice a family":  {"ipFamilies: [IPv6, IPv6], ports: [{port: 80}]", []string{"spec.ipFamilies[1]: Duplicate value"}},
		"no policy":       {"ipFamilyPolicy: TripleStack, ports: [{port: 80}]", []string{"spec.ipFamilyPolicy: Unsupported value"}},
		"three addresses": {"clusterIP: 10.43.0.1, clusterIPs: [10.43.0.1, 'fd00::1', 10.43.0.2], ports: [{port: 80}]", []string{"spec.clusterIPs: Invalid value"}},
		"other first":     {"clusterIP: 10.43.0.1, clusterIPs: [10.43.0.2], ports: [{port: 80}]", []string{"spec.clusterIPs: Invalid value"}},
		"half headless":   {"clusterIP: None, clusterIPs: [None, 10.43.0.2]", []string{"spec.clusterIPs: Invalid value"}},
		"no addresses":    {"type: ExternalName, externalName: a.b, ipFamilies: [IPv4], ipFamilyPolicy: SingleStack", []string{"spec.ipFamilies: Forbidden", "spec.ipFamilyPolicy: Forbidden"}},
		"traffic policy":  {"externalTrafficPolicy: Local, ports: [{port: 80}]", []string{"spec.externalTrafficPolicy: Invalid value"}},

		"node port":           {"type: NodePort, ports: [{port: 80, nodePort: 30080}]", nil},
		"node port of none":   {"ports: [{port: 80, nodePort: 30080}]", []string{"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"}},
		"external addresses":  {`externalIPs: [192.0.2.1, 127.0.0.1, 169.254.1.1, 0.0.0.0, x], ports: [{port: 80}]`, []string{"spec.externalIPs[1]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)", "spec.externalIPs[2]: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)", "spec.externalIPs[3]: Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0 or ::)", "spec.externalIPs[4]: Invalid value"}},
		"health check port":   {"type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30081, ports: [{port: 80}]", nil},
		"health check alone":  {"type: LoadBalancer, healthCheckNodePort: 30081, ports: [{port: 80}]", []string{"spec.healthCheckNodePort: Invalid value: 30081: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'"}},
		"distribution":        {"trafficDistribution: PreferSameNode, ports: [{port: 80}]", nil},
		"bad distribution":    {"trafficDistribution: Far, ports: [{port: 80}]", []string{"spec.trafficDistribution: Unsupported value"}},
		"balancer":            {"type: LoadBalancer, loadBalancerClass: example.com/lb, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]", nil},
		"no balancer":         {"type: NodePort, loadBalancerClass: example.com/lb, loadBalancerSourceRanges: [10.0.0.0/8], allocateLoadBalancerNodePorts: true, ports: [{port: 80}]", []string{"spec.loadBalancerSourceRanges: Forbidden", "spec.allocateLoadBalancerNodePorts: Forbidden", "spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"}},
		"bad balancer ranges": {"type: LoadBalancer, loadBalancerSourceRanges: [10.0.0.1], ports: [{port: 80}]", []string{"spec.loadBalancerSourceRanges[0]: Invalid value"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := read[corev1.Service](t, "spec: {"+tt.spec+"}")
			defaults.Service(s)
			match(t, Service(s, nil), tt.want...)
		})
	}
}

func TestServiceUpdate(t *testing.T) {
	old := read[corev1.Service](t, "spec: {type: LoadBalancer, loadBalancerClass: example.com/a, clusterIP: 10.43.0.9, ports: [{port: 80}]}")
	now := read[corev1.Service](t, "spec: {type: LoadBalancer, loadBalancerClass: example.com/b, clusterIP: 10.43.0.9, ports: [{port: 80}]}")
	defaults.Service(old)
	defaults.Service(now)
	match(t, Service(now, old), "spec.loadBalancerClass: Invalid value: \"example.com/b\": may not change once set")
}

func TestServiceStatus(t *testing.T) {
	old := read[corev1.Service](t, "spec: {type: LoadBalancer}")
	match(t, ServiceStatus(read[corev1.Service](t, "{spec: {type: LoadBalancer}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: VIP}, {hostname: lb.example.com}]}}}"), old))
	match(t, ServiceStatus(read[corev1.Service](t, "{spec: {type: ClusterIP}, status: {loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: VIP}]}}}"), old), "status.loadBalancer.ingress: Forbidden")
	match(t, ServiceStatus(read[corev1.Service](t, "{spec: {type: LoadBalancer}, status: {loadBalancer: {ingress: [{ip: x, ipMode: Direct}, {hostname: 192.0.2.1}, {hostname: a, ipMode: VIP}]}}}"), old),
		"status.loadBalancer.ingress[0].ip: Invalid value", "status.loadBalancer.ingress[0].ipMode: Unsupported value",
		"status.loadBalancer.ingress[1].hostname: Invalid value", "status.loadBalancer.ingress[2].ipMode: Forbidden")
}

// TestEndpointAddresses: endpoints do not lead back to the node that asks.
func TestEndpointAddresses(t *testing.T) {
	match(t, Endpoints(read[corev1.Endpoints](t, "subsets: [{addresses: [{ip: 192.0.2.1}, {ip: 127.0.0.1}], notReadyAddresses: [{ip: 169.254.3.4}], ports: [{port: 80}]}]"), nil),
		"subsets[0].addresses[1].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
		"subsets[0].notReadyAddresses[0].ip: Invalid value: \"169.254.3.4\": may not be in the link-local range (169.254.0.0/16, fe80::/10)")
	s := read[discoveryv1.EndpointSlice](t, "{addressType: IPv4, endpoints: [{addresses: [192.0.2.1]}, {addresses: [127.0.0.1]}, {addresses: [169.254.3.4]}]}")
	match(t, EndpointSlice(s, nil), "endpoints[1].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range", "endpoints[2].addresses[0]: Invalid value")
}

func TestImmutableData(t *testing.T) {
	old := read[corev1.ConfigMap](t, "{immutable: true, data: {a: b}}")
	match(t, ConfigMap(read[corev1.ConfigMap](t, "{immutable: true, data: {a: b}}"), old))
	match(t, ConfigMap(read[corev1.ConfigMap](t, "{immutable: true, data: {a: c}}"), old), "data: Forbidden")
	match(t, ConfigMap(read[corev1.ConfigMap](t, "{data: {a: b}}"), old), "immutable: Forbidden")
	match(t, ConfigMap(read[corev1.ConfigMap](t, "data: {\"a/b\": c}"), nil), "data[a/b]: Invalid value")
	match(t, ConfigMap(read[corev1.ConfigMap](t, "{data: {a: b}, binaryData: {a: Yg==}}"), nil), "data[a]: Invalid value")
	match(t, Secret(read[corev1.Secret](t, "{type: kubernetes.io/tls, data: {tls.crt: Yg==}}"), nil), "data[tls.key]: Required value")
	match(t, Secret(read[corev1.Secret](t, "type: b"), read[corev1.Secret](t, "type: a")), "type: Invalid value")
	big := &corev1.ConfigMap{Data: map[string]string{"a": strings.Repeat("x", maxData+1)}}
	if len(ConfigMap(big, nil)) != 1 {
		t.Error("too much data was accepted")
	}
}

func TestLease(t *testing.T) {
	match(t, Lease(read[coordinationv1.Lease](t, "{spec: {leaseDurationSeconds: 0, leaseTransitions: -1}}"), nil),
		"spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0", "spec.leaseTransitions: Invalid value: -1")
	// What a leader writes that gives its lease back (client-go's ReleaseOnCancel).
	match(t, Lease(read[coordinationv1.Lease](t, `{spec: {holderIdentity: "", leaseDurationSeconds: 1, leaseTransitions: 3}}`), nil))
}

func TestApplication(t *testing.T) {
	tests := map[string]struct {
		text string
		want []string
	}{
		"empty":     {"spec: {}", nil},
		"full":      {`spec: {source: {repoURL: "https://git.example.com/a.git", ref: ">=1.2 <2"}, sync: {schedule: "*/5 9-18 * * MON-FRI", timeZone: America/Sao_Paulo}}`, nil},
		"scp":       {`spec: {source: {repoURL: "git@git.example.com:acme/shop.git"}}`, nil},
		"URL":       {`spec: {source: {repoURL: "ext::sh -c id"}}`, []string{"spec.source.repoURL: Invalid value"}},
		"path":      {"spec: {source: {path: ../x}}", []string{"spec.source.path: Invalid value"}},
		"root":      {"spec: {source: {path: /etc}}", []string{"spec.source.path: Invalid value"}},
		"ref":       {`spec: {source: {ref: "--upload-pack=x"}}`, []string{"spec.source.ref: Invalid value"}},
		"secret":    {"spec: {source: {secretRef: {}}}", []string{"spec.source.secretRef.name: Required value"}},
		"interval":  {"spec: {sync: {interval: 10ms}}", []string{"spec.sync.interval: Invalid value"}},
		"never":     {"spec: {sync: {interval: 0s}}", nil},
		"timeout":   {"spec: {sync: {timeout: 0s}}", []string{"spec.sync.timeout: Invalid value"}},
		"cron":      {`spec: {sync: {schedule: "61 * * * *"}}`, []string{"spec.sync.schedule: Invalid value"}},
		"cron zone": {`spec: {sync: {schedule: "CRON_TZ=UTC * * * * *"}}`, []string{"spec.sync.schedule: Invalid value"}},
		"zone":      {`spec: {sync: {schedule: "* * * * *", timeZone: Moon/Sea}}`, []string{"spec.sync.timeZone: Invalid value"}},
		"lone zone": {"spec: {sync: {timeZone: UTC}}", []string{"spec.sync.timeZone: Invalid value"}},
		"resolve":   {"spec: {images: {resolve: Tag}}", []string{"spec.images.resolve: Unsupported value"}},
		"history":   {"spec: {history: {limit: 0}}", []string{"spec.history.limit: Invalid value"}},
		"operation": {"operation: {id: a, sync: {}, hold: {}}", []string{"operation: Invalid value"}},
		"no id":     {"operation: {sync: {}}", []string{"operation.id: Required value"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			a := read[v1alpha1.Application](t, tt.text)
			defaults.Application(a)
			match(t, Application(a, nil), tt.want...)
		})
	}
}

func TestRevision(t *testing.T) {
	const sha = "0123456789012345678901234567890123456789"
	old := read[v1alpha1.Revision](t, "spec: {application: a, number: 1, commit: \""+sha+"\"}")
	match(t, Revision(old, nil))
	match(t, Revision(old.DeepCopy(), old))
	changed := old.DeepCopy()
	changed.Spec.Subject = "other"
	match(t, Revision(changed, old), "spec: Invalid value")
	match(t, Revision(read[v1alpha1.Revision](t, "spec: {application: a, number: 1, commit: abc}"), nil), "spec.commit: Invalid value")
}

// TestPodCIDRs: a node has at most one of each family, once and for good.
func TestPodCIDRs(t *testing.T) {
	none := read[corev1.Node](t, "spec: {}")
	one := read[corev1.Node](t, "spec: {podCIDR: 10.42.0.0/24, podCIDRs: [10.42.0.0/24]}")
	both := read[corev1.Node](t, "spec: {podCIDR: 10.42.0.0/24, podCIDRs: [10.42.0.0/24, 'fd00::/64']}")
	match(t, Node(both, none))
	match(t, Node(both, both))
	match(t, Node(one, both), "spec.podCIDRs: Forbidden")
	match(t, Node(read[corev1.Node](t, "spec: {podCIDR: 10.42.0.0/24, podCIDRs: [10.42.0.0/24, 10.42.1.0/24]}"), none), "spec.podCIDRs: Invalid value")
	match(t, Node(read[corev1.Node](t, "spec: {podCIDR: 10.42.0.0/24, podCIDRs: [10.42.0.0/24, x]}"), none), "spec.podCIDRs[1]: Invalid value")
}
