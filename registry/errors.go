package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// Kind says what can be done about an error.
type Kind string

// The kinds of errors.
const (
	KindNotFound     Kind = "not found"    // the registry has no such image
	KindUnauthorized Kind = "unauthorized" // the credentials don't suffice
	KindUnavailable  Kind = "unavailable"  // the registry can't be reached, or has trouble of its own
	KindInvalid      Kind = "invalid"      // the reference or the image can't be used; a retry won't help
	KindCanceled     Kind = "canceled"     // the caller gave up
	KindLocal        Kind = "local"        // this machine's disk
)

// Error is an error about one image.
type Error struct {
	Reference string
	Kind      Kind
	Err       error
}

// Error names the reference and what to do.
func (e *Error) Error() string {
	switch e.Kind {
	case KindNotFound:
		return fmt.Sprintf("image %s not found: push it, or correct the reference: %v", e.Reference, cause(e.Err))
	case KindUnauthorized:
		return fmt.Sprintf("image %s: the registry refuses the credentials: name a Secret of type kubernetes.io/dockerconfigjson in imagePullSecrets: %v", e.Reference, cause(e.Err))
	case KindUnavailable:
		return fmt.Sprintf("image %s: the registry is unavailable and is asked again later: %v", e.Reference, cause(e.Err))
	case KindInvalid:
		return fmt.Sprintf("image %s can't be used: build it anew, or correct the reference: %v", e.Reference, cause(e.Err))
	case KindLocal:
		return fmt.Sprintf("image %s: this machine can't store it: check the disk: %v", e.Reference, cause(e.Err))
	default:
		return fmt.Sprintf("image %s: %v", e.Reference, cause(e.Err))
	}
}

// cause is an error in words. Of an answer without any, the registry and the status are
// what there is to say.
func cause(err error) string {
	var t *transport.Error
	if errors.As(err, &t) && len(t.Errors) == 0 && t.Request != nil {
		return fmt.Sprintf("%s answers %d %s", t.Request.URL.Host, t.StatusCode, http.StatusText(t.StatusCode))
	}
	return err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func hasKind(err error, k Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == k
}

// IsNotFound tells that the registry has no such image.
func IsNotFound(err error) bool { return hasKind(err, KindNotFound) }

// IsUnavailable tells that the registry can't be reached now.
func IsUnavailable(err error) bool { return hasKind(err, KindUnavailable) }

// IsUnauthorized tells that the credentials are missing or wrong.
func IsUnauthorized(err error) bool { return hasKind(err, KindUnauthorized) }

// IsInvalid tells that the reference or the image itself is no good.
func IsInvalid(err error) bool { return hasKind(err, KindInvalid) }

func newError(reference string, err error) error {
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return &Error{Reference: reference, Kind: kindOf(err), Err: err}
}

func kindOf(err error) Kind {
	var local *localError
	var bad *LayerError
	var status *transport.Error
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return KindCanceled
	case errors.As(err, &local):
		return KindLocal
	case errors.As(err, &bad), errors.Is(err, errBadImage):
		return KindInvalid
	case errors.As(err, &status):
		switch status.StatusCode {
		case http.StatusNotFound:
			return KindNotFound
		case http.StatusUnauthorized, http.StatusForbidden:
			return KindUnauthorized
		default:
			return KindUnavailable
		}
	default:
		return KindUnavailable
	}
}

// errBadImage is wrapped by errors about a manifest or configuration.
var errBadImage = errors.New("bad image")

// localError is trouble with this machine's disk.
type localError struct{ err error }

func (e *localError) Error() string { return e.err.Error() }
func (e *localError) Unwrap() error { return e.err }

func local(err error) error {
	if err == nil {
		return nil
	}
	return &localError{err}
}

// LayerError says which entry of which layer is refused, and why.
type LayerError struct {
	Layer, Entry string
	Err          error
}

func (e *LayerError) Error() string {
	if e.Entry == "" {
		return fmt.Sprintf("layer %s: %v", e.Layer, e.Err)
	}
	return fmt.Sprintf("layer %s: entry %q: %v", e.Layer, e.Entry, e.Err)
}

// Unwrap returns the cause.
func (e *LayerError) Unwrap() error { return e.Err }
