package container

import "errors"

// ErrNotFound is wrapped by the errors of calls that need a sandbox or a running
// container which is not there: start in a lost sandbox, exec in an ended container.
var ErrNotFound = errors.New("not found")

// IsNotFound tells that the sandbox or container of the call is not there (any more).
func IsNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
