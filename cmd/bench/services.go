package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"gitk8s.dev/gitk8s/runtime/network"
)

const (
	// requestTurns, of the length of requestTurn each, are made for one figure.
	requestTurns = 20
	requestTurn  = 300 * time.Millisecond
	// busyServices are in the API while a change of one is measured.
	busyServices = 1000
	endpointsOf  = 3
)

// proxies measures the service proxy alone: from the API's objects to what the kernel
// has, in a network namespace of its own.
func (b *bench) proxies(ctx context.Context) (err error) {
	id := fmt.Sprintf("bench%d", os.Getpid())
	if err := network.EnsureHub(id, floorRanges); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, network.DeleteTopology(id)) }()
	node, err := network.EnsureNode(id, "node", 1, floorRanges)
	if err != nil {
		return err
	}
	for _, n := range []int{1000, 10_000} {
		services, slices := simulatedServices(n)
		var all, one sample
		for range b.runs {
			p, err := network.NewProxy(node.NetNS, floorRanges.Services) // it knows nothing of what the kernel has
			if err != nil {
				return err
			}
			all = append(all, 0)
			if all[len(all)-1], err = apply(p, services, slices); err == nil {
				changeEndpoint(slices[n/2])
				one = append(one, 0)
				one[len(one)-1], err = apply(p, services, slices)
			}
			if err := errors.Join(err, p.Close(), ctx.Err()); err != nil {
				return err
			}
		}
		what := fmt.Sprintf("service proxy alone, %d services × %d endpoints", n, endpointsOf)
		b.add(row{what: what + ": everything built", figure: all.spread()})
		b.add(row{what: what + ": one endpoint changed", figure: one.spread()})
	}
	return nil
}

func apply(p *network.Proxy, services []*corev1.Service, slices []*discoveryv1.EndpointSlice) (time.Duration, error) {
	began := time.Now()
	err := p.Apply(network.Desired(network.Place{Node: "node"}, services, slices))
	return time.Since(began), err
}

// changeEndpoint gives the last endpoint another address.
func changeEndpoint(s *discoveryv1.EndpointSlice) {
	e := &s.Endpoints[len(s.Endpoints)-1]
	ip := netip.MustParseAddr(e.Addresses[0]).As4()
	ip[3]++
	e.Addresses[0] = netip.AddrFrom4(ip).String()
}

func simulatedServices(n int) (services []*corev1.Service, slices []*discoveryv1.EndpointSlice) {
	for i := range n {
		svc, slice := simulatedService(i, netip.AddrFrom4([4]byte{10, 43, byte(i >> 8), byte(i)}).String())
		for e := range endpointsOf {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{netip.AddrFrom4([4]byte{10, 42, byte(i), byte(10 * (e + 1))}).String()}})
		}
		services, slices = append(services, svc), append(slices, slice)
	}
	return services, slices
}

// simulatedService has no selector, and a slice without endpoints yet.
func simulatedService(i int, ip string) (*corev1.Service, *discoveryv1.EndpointSlice) {
	name := fmt.Sprintf("bench-%d", i)
	return &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
		}, &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{discoveryv1.LabelServiceName: name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
		}
}

// services measures requests from a node to a pod on the other one, by its address
// and by services, and how soon a changed endpoint is one.
func (b *bench) services(ctx context.Context, c *cluster) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "served", Labels: map[string]string{"app": "served"}}, Spec: corev1.PodSpec{
		NodeName: "worker-2", TerminationGracePeriodSeconds: ptr.To(int64(0)), Containers: []corev1.Container{{Name: "web", Image: image("v1"), ReadinessProbe: &corev1.Probe{
			PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
		}}},
	}}
	if pod, err := c.readyPod(ctx, pod); err != nil {
		return err
	} else if err := b.requests(ctx, c, pod.Status.PodIP); err != nil {
		return err
	} else if err := b.endpointChange(ctx, c, pod.Status.PodIP); err != nil {
		return err
	}
	return c.CoreV1().Pods(namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{})
}

// readyPod creates a pod and waits until it is Ready.
func (c *cluster) readyPod(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	w, err := c.watchPods(ctx, pod.Labels["app"])
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	if _, err := c.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	if _, err = until(ctx, w, "the pod is Ready", func(ev watch.Event) bool {
		p, ok := ev.Object.(*corev1.Pod)
		return ok && isReady(p)
	}); err != nil {
		return nil, err
	}
	return c.CoreV1().Pods(namespace).Get(ctx, pod.Name, metav1.GetOptions{})
}

func (b *bench) requests(ctx context.Context, c *cluster, podIP string) error {
	svc, err := c.CoreV1().Services(namespace).Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "served"}, Spec: corev1.ServiceSpec{
		Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "served"}, Ports: []corev1.ServicePort{{Port: 8080}},
	}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	ways := []way{
		{"a pod's address", net.JoinHostPort(podIP, "8080"), false},
		{"a ClusterIP", net.JoinHostPort(svc.Spec.ClusterIP, "8080"), false},
		{"a node port, by the node without the pod", net.JoinHostPort(floorRanges.Node(1)[0].String(), strconv.Itoa(int(svc.Spec.Ports[0].NodePort))), false},
	}
	fronts, stop, err := c.fronts(ctx, podIP)
	if err != nil {
		return err
	}
	defer stop()
	if err := c.reusePorts(); err != nil {
		return err
	}
	// By turns, a little each time: what else the machine does meets all of them.
	ways = append(ways, fronts...)
	kinds := []kind{{"one client, a connection for each", 1, false}, {"one client, one connection", 1, true}, {"16 clients, a connection for each", 16, false}, {"16 clients, one connection each", 16, true}}
	took := map[kind][]sample{}
	for range requestTurns {
		for _, k := range kinds {
			if took[k] == nil {
				took[k] = make([]sample, len(ways))
			}
			for i, to := range ways {
				more, err := c.clients(k.clients, func() (sample, error) { return request(ctx, to, k.keep, requestTurn) })
				if err != nil {
					return fmt.Errorf("%s: %w", to.what, err)
				}
				took[k][i] = append(took[k][i], more...)
			}
		}
	}
	for i, to := range ways {
		for _, k := range kinds {
			all := took[k][i]
			b.add(row{
				what:   fmt.Sprintf("HTTP requests from a node to a pod on another, %s: by %s", k.what, to.what),
				figure: fmt.Sprintf("%.0f/s, p50 %s, p99 %s", float64(len(all))/(requestTurns*requestTurn).Seconds(), show(all.at(0.5)), show(all.at(0.99))),
			})
		}
	}
	return c.CoreV1().Services(namespace).Delete(ctx, svc.Name, metav1.DeleteOptions{})
}

// kind is how requests are made.
type kind struct {
	what    string
	clients int
	keep    bool // the connection
}

// reusePorts lets the clients have a port again a second after its last connection.
// Otherwise all that there are wait for their time after a quarter of a minute (TIME_WAIT),
// and the kernel looks longer for a free one than a request takes; but not at loopback.
func (c *cluster) reusePorts() error {
	_, err := c.onWorker(func() (sample, error) {
		return nil, os.WriteFile("/proc/sys/net/ipv4/tcp_tw_reuse", []byte("1"), 0)
	})
	return err
}

// clients calls f for some clients at once, on threads in the first worker's network
// namespace.
func (c *cluster) clients(n int, f func() (sample, error)) (sample, error) {
	took, errs := make([]sample, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { took[i], errs[i] = c.onWorker(f) })
	}
	all.Wait()
	return slices.Concat(took...), errors.Join(errs...)
}

// way is an address at which the pod is reached.
type way struct {
	what, address string
	tls           bool
}

// endpointChange measures from the write of an EndpointSlice to the first connection
// by way of it.
func (b *bench) endpointChange(ctx context.Context, c *cluster, podIP string) error {
	api, slices := c.CoreV1().Services(namespace), c.DiscoveryV1().EndpointSlices(namespace)
	for _, others := range []int{0, busyServices} {
		for i := range others {
			svc, slice := simulatedService(i+1, "")
			slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{podIP}}}
			_, err := api.Create(ctx, svc, metav1.CreateOptions{})
			if err == nil {
				_, err = slices.Create(ctx, slice, metav1.CreateOptions{})
			}
			if err != nil {
				return err
			}
		}
		took, err := b.oneEndpoint(ctx, c, podIP)
		if err != nil {
			return err
		}
		b.add(row{what: fmt.Sprintf("an endpoint written to the API → the first connection by way of its service, %d other services", others), figure: took.spread()})
	}
	background := metav1.DeletePropagationBackground
	for i := range busyServices {
		svc, _ := simulatedService(i+1, "")
		if err := errors.Join(api.Delete(ctx, svc.Name, metav1.DeleteOptions{PropagationPolicy: &background}), slices.Delete(ctx, svc.Name, metav1.DeleteOptions{})); err != nil {
			return err
		}
	}
	return nil
}

// oneEndpoint gives a service an endpoint and takes it away, again and again.
func (b *bench) oneEndpoint(ctx context.Context, c *cluster, podIP string) (sample, error) {
	api, slices := c.CoreV1().Services(namespace), c.DiscoveryV1().EndpointSlices(namespace)
	svc, slice := simulatedService(0, "")
	svc, err := api.Create(ctx, svc, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	if slice, err = slices.Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	took, err := c.onWorker(func() (sample, error) {
		var took sample
		for range b.runs {
			for _, endpoints := range [][]discoveryv1.Endpoint{nil, {{Addresses: []string{podIP}}}} {
				began := time.Now()
				slice.Endpoints = endpoints
				if slice, err = slices.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
					return nil, err
				}
				if err := answers(ctx, net.JoinHostPort(svc.Spec.ClusterIP, "80"), len(endpoints) > 0); err != nil {
					return nil, err
				}
				if len(endpoints) > 0 {
					took = append(took, time.Since(began))
				}
			}
		}
		return took, nil
	})
	return took, errors.Join(err, api.Delete(ctx, svc.Name, metav1.DeleteOptions{}), slices.Delete(ctx, slice.Name, metav1.DeleteOptions{}))
}

// answers waits until somebody answers at an address, or nobody does any more.
func answers(ctx context.Context, address string, want bool) error {
	for began := time.Now(); time.Since(began) < patience && ctx.Err() == nil; {
		conn, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			_ = conn.Close()
		}
		if (err == nil) == want {
			return nil
		}
	}
	return errors.Join(fmt.Errorf("%s does not become what it should", address), ctx.Err())
}

// workerNetNS is the network namespace of the first worker, as docs/contracts.md has it.
func (c *cluster) workerNetNS() string {
	sum := sha256.Sum256([]byte(c.dir))
	return network.NodeNetNS(hex.EncodeToString(sum[:4]), "worker-1")
}

// onWorker calls f on a thread in the first worker's network namespace.
func (c *cluster) onWorker(f func() (sample, error)) (out sample, err error) {
	path := c.workerNetNS()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends here
		var ns netns.NsHandle
		if ns, err = netns.GetFromPath(path); err != nil {
			return
		}
		defer ns.Close()
		if err = netns.Set(ns); err == nil {
			out, err = f()
		}
	}()
	<-done
	return out, err
}

// request asks a web server again and again.
func request(ctx context.Context, to way, keep bool, long time.Duration) (sample, error) {
	var took sample
	var conn net.Conn
	var r *bufio.Reader
	for began := time.Now(); time.Since(began) < long && ctx.Err() == nil; {
		at := time.Now()
		if conn == nil {
			var err error
			if conn, err = net.DialTimeout("tcp", to.address, 10*time.Second); err != nil {
				return nil, err
			}
			if to.tls {
				// One key exchange, which every server has: a newer one, good against quantum
				// computers, costs both sides more.
				conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true, CurvePreferences: []tls.CurveID{tls.X25519}}) //nolint:gosec // it is our own server
			}
			r = bufio.NewReader(conn)
		}
		if err := exchange(conn, r); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
		if !keep {
			_ = conn.Close()
			conn = nil
		}
		took = append(took, time.Since(at))
	}
	if conn != nil {
		_ = conn.Close()
	}
	return took, ctx.Err()
}

// exchange is one request and its answer, which has no body.
func exchange(conn net.Conn, r *bufio.Reader) error {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		return err
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil || line == "\r\n" {
			return err
		}
	}
}
