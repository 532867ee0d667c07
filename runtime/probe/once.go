package probe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// maxOutput bounds what is kept of a probe's answer, for messages.
const maxOutput = 10 << 10

// Target is where a container can be asked.
type Target struct {
	// IP of the pod.
	IP string
	// Ports that the container declares, for probes that name one.
	Ports []v1.ContainerPort
	// Exec runs a command in the container and returns its exit code and the
	// beginning of its output.
	Exec func(ctx context.Context, command []string) (exitCode int, output string, err error)
}

// Outcome of one question.
type Outcome struct {
	Result Result
	// Output says why, in the words of Kubernetes events.
	Output string
}

// Once asks one question and waits for the answer, at most spec.TimeoutSeconds.
func Once(ctx context.Context, spec *v1.Probe, t Target) Outcome {
	timeout := time.Duration(max(spec.TimeoutSeconds, 1)) * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case spec.Exec != nil:
		return runExec(ctx, spec.Exec.Command, t, timeout)
	case spec.HTTPGet != nil:
		return runHTTP(ctx, spec.HTTPGet, t)
	case spec.TCPSocket != nil:
		return runTCP(ctx, spec.TCPSocket, t)
	case spec.GRPC != nil:
		return runGRPC(ctx, spec.GRPC, t)
	}
	return Outcome{Failure, "the probe names no action"}
}

func runExec(ctx context.Context, command []string, t Target, timeout time.Duration) Outcome {
	if t.Exec == nil {
		return Outcome{Unknown, "exec is not available"}
	}
	code, output, err := t.Exec(ctx, command)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return Outcome{Failure, fmt.Sprintf("command timed out: %q timed out after %s", command, timeout)}
	case err != nil:
		return Outcome{Unknown, err.Error()}
	case code != 0:
		return Outcome{Failure, output}
	}
	return Outcome{Success, output}
}

func runTCP(ctx context.Context, a *v1.TCPSocketAction, t Target) Outcome {
	port, err := t.port(a.Port)
	if err != nil {
		return Outcome{Unknown, err.Error()}
	}
	host := a.Host
	if host == "" {
		host = t.IP
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
	if err != nil {
		return Outcome{Failure, err.Error()}
	}
	conn.Close()
	return Outcome{Result: Success}
}

// port resolves a port by number or by the name that the container declares.
func (t Target) port(p intstr.IntOrString) (int, error) {
	n := p.IntValue()
	if p.Type == intstr.String {
		found := false
		for _, cp := range t.Ports {
			if cp.Name == p.StrVal {
				n, found = int(cp.ContainerPort), true
				break
			}
		}
		if !found {
			var err error
			if n, err = strconv.Atoi(p.StrVal); err != nil {
				return 0, fmt.Errorf("couldn't find port %q among the container's ports", p.StrVal)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("invalid port number: %d", n)
	}
	return n, nil
}
