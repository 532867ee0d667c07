package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
)

const (
	// questionsFor is how long questions are asked in one run.
	questionsFor = 3 * time.Second
	// namedServices are there when names are asked for, manyServices in the end.
	namedServices = 1000
	manyServices  = 10_000
	// writers is how many clients make them.
	writers   = 16
	dnsServer = "10.43.0.10:53" // docs/contracts.md
)

// names measures what many services cost a worker, and how soon it answers their names,
// beside dnsmasq with the same names, where the machine has it.
func (b *bench) names(ctx context.Context, c *cluster) error {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "named", Labels: map[string]string{"app": "named"}}, Spec: corev1.PodSpec{
		NodeName: "worker-2", TerminationGracePeriodSeconds: ptr.To(int64(0)), Containers: []corev1.Container{{Name: "web", Image: image("v1"), ReadinessProbe: &corev1.Probe{
			PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
		}}},
	}}
	pod, err := c.readyPod(ctx, pod)
	if err != nil {
		return err
	}
	if err := b.workerMemory(c, 0); err != nil {
		return err
	}
	var all []*corev1.Service
	for _, n := range []int{namedServices, manyServices} {
		made, err := c.manyServices(ctx, len(all), n, pod.Status.PodIP)
		if err != nil {
			return err
		}
		all = append(all, made...)
		if err := b.workerMemory(c, n); err != nil {
			return err
		}
		if n == namedServices {
			if err := b.nameServers(ctx, c, all); err != nil {
				return err
			}
		}
	}
	return nil // they go with the cluster
}

// manyServices makes services up to a number, and waits until the first worker has the
// newest: it alone has an endpoint that answers.
func (c *cluster) manyServices(ctx context.Context, from, to int, podIP string) ([]*corev1.Service, error) {
	made := make([]*corev1.Service, to-from)
	var wg sync.WaitGroup
	errs := make([]error, writers)
	for w := range writers {
		wg.Go(func() {
			for i := from + w; i < to && errs[w] == nil; i += writers {
				svc, slice := simulatedService(i, "")
				for e := range endpointsOf {
					slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.%d.%d", 200+i%50, 10*(e+1))}})
				}
				if i == to-1 {
					slice.Endpoints = []discoveryv1.Endpoint{{Addresses: []string{podIP}}}
				}
				if made[i-from], errs[w] = c.CoreV1().Services(namespace).Create(ctx, svc, metav1.CreateOptions{}); errs[w] == nil {
					_, errs[w] = c.DiscoveryV1().EndpointSlices(namespace).Create(ctx, slice, metav1.CreateOptions{})
				}
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	_, err := c.onWorker(func() (sample, error) {
		return nil, answers(ctx, net.JoinHostPort(made[len(made)-1].Spec.ClusterIP, "80"), true)
	})
	return made, err
}

// workerMemory adds what the first worker holds.
func (b *bench) workerMemory(c *cluster, services int) error {
	all, err := c.processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.name == "agent worker-1" {
			b.add(row{what: fmt.Sprintf("memory of a worker, %d services × %d endpoints", services, endpointsOf), figure: megabytes([]process{p})})
			return nil
		}
	}
	return errors.New("the first worker's process is not found")
}

// nameServers asks for the addresses of services, from the first worker's network.
func (b *bench) nameServers(ctx context.Context, c *cluster, services []*corev1.Service) error {
	in, end, err := enter(c.workerNetNS())
	if err != nil {
		return err
	}
	defer end()
	queries := make([][]byte, len(services))
	var hosts strings.Builder
	for i, svc := range services {
		name := svc.Name + "." + namespace + ".svc.cluster.local"
		fmt.Fprintf(&hosts, "%s %s\n", svc.Spec.ClusterIP, name)
		var m dns.Msg
		m.SetQuestion(name+".", dns.TypeA)
		if queries[i], err = m.Pack(); err != nil {
			return err
		}
	}
	servers := []way{{what: "by the node", address: dnsServer}}
	if _, err := exec.LookPath("dnsmasq"); err == nil {
		stop, err := c.dnsmasq(hosts.String())
		if err != nil {
			return err
		}
		defer stop()
		servers = append(servers, way{what: "by dnsmasq in its place", address: "127.0.0.1:5300"})
	}
	for _, s := range servers { // until it knows all names
		if err := resolves(ctx, in, s.address, queries); err != nil {
			return err
		}
	}
	for _, clients := range []int{1, 16} {
		took := make([]sample, len(servers))
		for range b.runs { // by turns, so that what else the machine does is the same for both
			for i, s := range servers {
				t, err := ask(ctx, in, s.address, queries, clients)
				if err != nil {
					return fmt.Errorf("%s: %w", s.what, err)
				}
				took[i] = append(took[i], t...)
			}
		}
		for i, s := range servers {
			rate := float64(len(took[i])) / (float64(b.runs) * questionsFor.Seconds())
			b.add(row{
				what:   fmt.Sprintf("DNS: names of %d services by UDP, %d at a time, answered %s", len(services), clients, s.what),
				figure: fmt.Sprintf("%.0f/s, p50 %s, p99 %s", rate, show(took[i].at(0.5)), show(took[i].at(0.99))),
			})
		}
	}
	return nil
}

// resolves waits until all names are answered.
func resolves(ctx context.Context, in *inside, address string, queries [][]byte) error {
	conn, err := in.dial(ctx, "udp", address)
	if err != nil {
		return err
	}
	defer conn.Close()
	buf := make([]byte, 4096)
	for began := time.Now(); ; {
		for i := 0; i < len(queries) && err == nil; i++ {
			err = lookUp(conn, queries[i], buf)
		}
		if err == nil || time.Since(began) > patience || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		err = nil
	}
}

// ask asks as many clients at a time, each with a socket of its own.
func ask(ctx context.Context, in *inside, address string, queries [][]byte, clients int) (sample, error) {
	took, errs := make([]sample, clients), make([]error, clients)
	var wg sync.WaitGroup
	for n := range clients {
		conn, err := in.dial(ctx, "udp", address)
		if err != nil {
			return nil, err
		}
		wg.Go(func() {
			defer conn.Close()
			buf := make([]byte, 4096)
			for i, began := n*37, time.Now(); time.Since(began) < questionsFor && errs[n] == nil; i++ {
				at := time.Now()
				errs[n] = lookUp(conn, queries[i%len(queries)], buf)
				took[n] = append(took[n], time.Since(at))
			}
		})
	}
	wg.Wait()
	var all sample
	for _, t := range took {
		all = append(all, t...)
	}
	return all, errors.Join(errs...)
}

// lookUp is one question and its answer, which must have an address.
func lookUp(conn net.Conn, query, buf []byte) error {
	if _, err := conn.Write(query); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	n, err := conn.Read(buf)
	if err != nil {
		return err
	}
	if n < 12 || buf[0] != query[0] || buf[1] != query[1] || buf[3]&0xf != 0 || buf[7] == 0 {
		return fmt.Errorf("%s: no address in the answer", conn.RemoteAddr())
	}
	return nil
}

// dnsmasq starts the name server that is compared with, in the first worker's network.
func (c *cluster) dnsmasq(hosts string) (end func(), err error) {
	dir, err := os.MkdirTemp("", "gitk8s-bench-dnsmasq-")
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "hosts")
	if err := os.WriteFile(file, []byte(hosts), 0o600); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	cmd := exec.Command("nsenter", "--net="+c.workerNetNS(), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
		"--port=5300", "--listen-address=127.0.0.1", "--bind-interfaces", "--user=root", "--pid-file="+filepath.Join(dir, "pid"), "--addn-hosts="+file)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	}, nil
}
