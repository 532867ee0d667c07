package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/pflag"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"gitk8s.dev/gitk8s/runtime/network/ingress"
)

// accessLogFlag is the name of the flag that says where requests are logged.
const accessLogFlag = "ingress-access-log"

func ingressLogFlag(f *pflag.FlagSet) {
	f.String(accessLogFlag, "", "file that each request to an Ingress is logged to, as JSON; - is standard output (default: none)")
}

// accessLog opens what --ingress-access-log names.
func (e *env) accessLog() (*slog.Logger, error) {
	return openAccessLog(e.v.GetString(accessLogFlag), e.io.out)
}

func openAccessLog(file string, out io.Writer) (*slog.Logger, error) {
	switch file {
	case "":
		return nil, nil
	case "-":
		return slog.New(slog.NewJSONHandler(out, nil)), nil
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", accessLogFlag, err)
	}
	return slog.New(slog.NewJSONHandler(f, nil)), nil
}

// openIngress serves Ingresses on the machine's own ports, for `up`: its nodes are in
// networks that the machine does not reach. A port that is taken is no reason not to
// start: who uses no Ingress does not need it.
func (c *controlPlane) openIngress(ctx context.Context) error {
	plain, err := c.listenOne("ingress (--http-port)", c.cfg.HTTPPort)
	var withTLS net.Listener
	if err == nil {
		withTLS, err = c.listenOne("ingress (--https-port)", c.cfg.HTTPSPort)
	}
	if err != nil {
		if plain != nil {
			plain.Close()
		}
		slog.Warn("Ingresses are not served on this machine", "error", err)
		return nil
	}
	access, err := openAccessLog(c.cfg.IngressAccessLog, os.Stdout)
	if err != nil {
		return err
	}
	w, err := ingress.NewFollower(c.watcher, c.gateways, c.watched)
	if err != nil {
		return err
	}
	c.ingress = ingress.NewProxy(ingress.Config{Dial: c.nodes.Dial, AccessLog: access})
	c.info.IngressHTTP, c.info.IngressHTTPS = "http://"+c.reach(plain), "https://"+c.reach(withTLS)
	c.run("ingress", func() error { return c.ingress.Serve(ctx, plain, withTLS) })
	doors := &ingress.Doors{Proxy: c.ingress, Listen: func(port int) (net.Listener, error) { return c.listenOne("a Gateway's listener", port) }}
	c.run("ingress tables", func() error {
		defer doors.Close()
		return w.Run(ctx, func(t *ingress.Table) {
			c.ingress.Update(t, w.Service, w.Slices)
			doors.Apply(ctx, t)
		})
	})
	return nil
}

// ingressStatus tells the API where Ingresses are reached: on this machine for `up`,
// else at the nodes.
type ingressStatus struct {
	publisher *ingress.Publisher
	follower  *ingress.Follower
	nodes     informers.SharedInformerFactory
	address   string
}

func (c *controlPlane) newIngressStatus(k kubernetes.Interface, f informers.SharedInformerFactory, events record.EventRecorder) (*ingressStatus, error) {
	w, err := ingress.NewFollower(k, c.gateways, f)
	if err != nil {
		return nil, err
	}
	s := &ingressStatus{publisher: ingress.NewPublisher(k, c.gateways, events), follower: w, nodes: f}
	if c.ingress != nil {
		s.address = c.cfg.advertised()
		return s, nil
	}
	_, err = f.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { s.places() }, UpdateFunc: func(any, any) { s.places() }, DeleteFunc: func(any) { s.places() },
	})
	return s, err
}

// places tells the addresses of the nodes that are Ready.
func (s *ingressStatus) places() {
	nodes, err := s.nodes.Core().V1().Nodes().Lister().List(labels.Everything())
	if err != nil {
		return
	}
	s.publisher.SetAddresses(readyAddresses(nodes))
}

func readyAddresses(nodes []*corev1.Node) []string {
	var out []string
	for _, n := range nodes {
		ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
			return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
		})
		for _, a := range n.Status.Addresses {
			if ready && a.Type == corev1.NodeInternalIP {
				out = append(out, a.Address)
			}
		}
	}
	slices.Sort(out)
	return out
}

// Run works until ctx ends.
func (s *ingressStatus) Run(ctx context.Context) error {
	if s.address != "" {
		s.publisher.SetAddresses([]string{s.address})
	}
	done := make(chan error, 1)
	go func() { done <- s.publisher.Run(ctx) }()
	return errors.Join(s.follower.Run(ctx, s.publisher.SetTable), <-done)
}

// serveIngress serves Ingresses on the node until ctx ends.
func (w *worker) serveIngress(ctx context.Context, f informers.SharedInformerFactory) error {
	follower, err := ingress.NewFollower(w.client, w.gateways, f)
	if err != nil {
		return err
	}
	front := &ingress.Front{Proxy: w.ingress, Listen: w.listenIngress}
	doors := &ingress.Doors{Proxy: w.ingress, Listen: func(port int) (net.Listener, error) { return w.listenNode(":" + strconv.Itoa(port)) }}
	defer front.Close()
	defer doors.Close()
	f.StartWithContext(ctx)
	defer f.Shutdown()
	return follower.Run(ctx, func(t *ingress.Table) {
		w.ingress.Update(t, follower.Service, follower.Slices)
		front.Apply(ctx, t)
		doors.Apply(ctx, t)
	})
}

// listenIngress opens the node's ports for Ingresses; a port 0 stays closed.
func (w *worker) listenIngress() (plain, withTLS net.Listener, err error) {
	open := func(port int) (net.Listener, error) {
		if port == 0 {
			return nil, nil
		}
		return w.listenNode(":" + strconv.Itoa(port))
	}
	if plain, err = open(w.httpPort); err != nil {
		return nil, nil, err
	}
	if withTLS, err = open(w.httpsPort); err != nil {
		if plain != nil {
			plain.Close()
		}
		return nil, nil, err
	}
	return plain, withTLS, nil
}
