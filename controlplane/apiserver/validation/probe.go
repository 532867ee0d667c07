package validation

import (
	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func probes(c *corev1.Container, path *field.Path) field.ErrorList {
	errs := probe(c.LivenessProbe, path.Child("livenessProbe"), true)
	errs = append(errs, probe(c.ReadinessProbe, path.Child("readinessProbe"), false)...)
	if r := c.ReadinessProbe; r != nil && r.TerminationGracePeriodSeconds != nil {
		errs = append(errs, field.Invalid(path.Child("readinessProbe", "terminationGracePeriodSeconds"), *r.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	return append(errs, probe(c.StartupProbe, path.Child("startupProbe"), true)...)
}

// probe checks a probe; once is for those whose first success is enough.
func probe(p *corev1.Probe, path *field.Path, once bool) field.ErrorList {
	if p == nil {
		return nil
	}
	errs := handler(handlers{exec: p.Exec, http: p.HTTPGet, tcp: p.TCPSocket, grpc: p.GRPC}, path)
	errs = append(errs, nonNegative(path.Child("initialDelaySeconds"), p.InitialDelaySeconds)...)
	errs = append(errs, nonNegative(path.Child("timeoutSeconds"), p.TimeoutSeconds)...)
	errs = append(errs, nonNegative(path.Child("periodSeconds"), p.PeriodSeconds)...)
	errs = append(errs, nonNegative(path.Child("successThreshold"), p.SuccessThreshold)...)
	errs = append(errs, nonNegative(path.Child("failureThreshold"), p.FailureThreshold)...)
	if p.TerminationGracePeriodSeconds != nil && *p.TerminationGracePeriodSeconds <= 0 {
		errs = append(errs, field.Invalid(path.Child("terminationGracePeriodSeconds"), *p.TerminationGracePeriodSeconds, "must be greater than 0"))
	}
	if once && p.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(path.Child("successThreshold"), p.SuccessThreshold, "must be 1"))
	}
	return errs
}

func lifecycle(h *corev1.LifecycleHandler, path *field.Path) field.ErrorList {
	return handler(handlers{exec: h.Exec, http: h.HTTPGet, tcp: h.TCPSocket, sleep: h.Sleep}, path)
}

// handlers is the union of what a probe and a hook may do.
type handlers struct {
	exec  *corev1.ExecAction
	http  *corev1.HTTPGetAction
	tcp   *corev1.TCPSocketAction
	grpc  *corev1.GRPCAction
	sleep *corev1.SleepAction
}

func handler(h handlers, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	count := 0
	// one checks a handler, of which there may be only one.
	one := func(name string, list field.ErrorList) {
		count++
		if count > 1 {
			errs = append(errs, field.Forbidden(path.Child(name), "may not specify more than 1 handler type"))
			return
		}
		errs = append(errs, list...)
	}
	if h.exec != nil {
		var list field.ErrorList
		if len(h.exec.Command) == 0 {
			list = append(list, field.Required(path.Child("exec", "command"), ""))
		}
		one("exec", list)
	}
	if h.http != nil {
		one("httpGet", httpGet(h.http, path.Child("httpGet")))
	}
	if h.tcp != nil {
		one("tcpSocket", portNumberOrName(path.Child("tcpSocket", "port"), h.tcp.Port))
	}
	if h.grpc != nil {
		one("grpc", portNumber(path.Child("grpc", "port"), h.grpc.Port))
	}
	if h.sleep != nil {
		one("sleep", nonNegative(path.Child("sleep", "seconds"), h.sleep.Seconds))
	}
	if count == 0 {
		errs = append(errs, field.Required(path, "must specify a handler type"))
	}
	return errs
}

func httpGet(h *corev1.HTTPGetAction, path *field.Path) field.ErrorList {
	var errs field.ErrorList
	if h.Path == "" {
		errs = append(errs, field.Required(path.Child("path"), ""))
	}
	errs = append(errs, portNumberOrName(path.Child("port"), h.Port)...)
	errs = append(errs, oneOf(path.Child("scheme"), h.Scheme, corev1.URISchemeHTTP, corev1.URISchemeHTTPS)...)
	for i, header := range h.HTTPHeaders {
		errs = append(errs, check(path.Child("httpHeaders").Index(i).Child("name"), header.Name, utilvalidation.IsHTTPHeaderName)...)
	}
	return errs
}
