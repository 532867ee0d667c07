package ingress

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
)

// defaultTimeout is how long a pod may take to begin its answer, as long as the
// reverse proxies that people know.
const defaultTimeout = 60 * time.Second

// protocol is what a pod is spoken to in.
type protocol int

const (
	plain     protocol = iota // HTTP/1.1
	cleartext                 // HTTP/2 without TLS, for gRPC
	encrypted                 // TLS, whose certificate is not checked
)

// options are what the annotations of an Ingress ask for.
type options struct {
	// redirectTLS sends requests without TLS to the same address with it, if the host
	// has a certificate; true unless refused.
	redirectTLS bool
	// redirect is where all requests are sent instead of to a pod, with redirectCode.
	redirect     *url.URL
	redirectCode int
	// timeout until the answer begins; 0 is none.
	timeout time.Duration
	// whole says that timeout is for the whole answer.
	whole bool
	// maxBody is the most that a request's body may have, in bytes; 0 is no limit.
	maxBody int64
	// leastConnections picks the pod with the fewest requests under way instead of
	// the next one.
	leastConnections bool
	// cookie is the name of a cookie that brings a client back to its pod.
	cookie   string
	protocol *protocol // nil: as the service's port says
}

// annotations by their name without the prefix.
var annotations = map[string]func(*options, string) error{
	"ssl-redirect": func(o *options, v string) (err error) {
		o.redirectTLS, err = strconv.ParseBool(v)
		return err
	},
	"redirect": func(o *options, v string) (err error) {
		if o.redirect, err = url.Parse(v); err == nil && (o.redirect.Host == "" || o.redirect.Scheme != "http" && o.redirect.Scheme != "https") {
			o.redirect, err = nil, errors.New("it must begin with http:// or https://")
		}
		return err
	},
	"redirect-code": func(o *options, v string) (err error) {
		if o.redirectCode, err = strconv.Atoi(v); err == nil && !slices.Contains([]int{301, 302, 303, 307, 308}, o.redirectCode) {
			err = errors.New("it must be 301, 302, 303, 307 or 308")
		}
		return err
	},
	"timeout": func(o *options, v string) (err error) {
		if o.timeout, err = time.ParseDuration(v); err == nil && o.timeout < 0 {
			err = errors.New("it must not be negative")
		}
		return err
	},
	"max-body-size": func(o *options, v string) error {
		q, err := resource.ParseQuantity(v)
		if err == nil && q.Sign() < 0 {
			err = errors.New("it must not be negative")
		}
		o.maxBody = q.Value()
		return err
	},
	"load-balancing": func(o *options, v string) error {
		switch v {
		case "round-robin":
		case "least-connections":
			o.leastConnections = true
		default:
			return errors.New("it must be round-robin or least-connections")
		}
		return nil
	},
	"affinity-cookie": func(o *options, v string) error {
		if (&http.Cookie{Name: v, Value: "x"}).Valid() != nil || v != textproto.TrimString(v) {
			return errors.New("it must be the name of a cookie")
		}
		o.cookie = v
		return nil
	},
	"backend-protocol": func(o *options, v string) error {
		p, ok := map[string]protocol{"http": plain, "h2c": cleartext, "grpc": cleartext, "https": encrypted}[strings.ToLower(v)]
		if !ok {
			return errors.New("it must be http, h2c, grpc or https")
		}
		o.protocol = &p
		return nil
	},
}

// parseOptions reads an Ingress' annotations. What is wrong is said, and the default
// holds instead.
func parseOptions(all map[string]string) (options, []string) {
	out := options{redirectTLS: true, redirectCode: http.StatusPermanentRedirect, timeout: defaultTimeout}
	var faults []string
	for _, key := range slices.Sorted(maps.Keys(all)) {
		name, ours := strings.CutPrefix(key, annotationPrefix)
		if !ours {
			continue
		}
		set, known := annotations[name]
		if !known {
			faults = append(faults, fmt.Sprintf("annotation %s is not known", key))
			continue
		}
		changed := out
		if err := set(&changed, all[key]); err != nil {
			faults = append(faults, fmt.Sprintf("annotation %s: %q: %v", key, all[key], err))
			continue
		}
		out = changed
	}
	return out, faults
}
