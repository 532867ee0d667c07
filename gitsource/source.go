package gitsource

import (
	"context"
	"errors"
	"io/fs"
	"time"
)

// Commit is what is known of a commit without its files.
type Commit struct {
	// SHA in full, 40 hexadecimal digits.
	SHA string
	// Author as "Name <mail>".
	Author string
	// Subject is the first line of the message.
	Subject string
	// Time of the commit, the committer's.
	Time time.Time
}

// Location says where an application's commits come from.
type Location struct {
	// URL is http(s), ssh or file. Empty means the repository Key of the embedded
	// Git server.
	URL string
	// Key is "<namespace>/<name>" of the application.
	Key string
	// Ref is a branch, tag, semver range, or a full or short SHA.
	Ref string
	// Auth is nil for anonymous access.
	Auth *Auth
}

// Source reads commits. Implementations are safe for concurrent use.
type Source interface {
	// Fetch asks the remote what the location's ref means now; one round trip when
	// nothing is new. The commit and its ancestors are then on disk.
	Fetch(ctx context.Context, l Location) (Commit, error)
	// Commit finds a commit that was fetched before, by full or short SHA.
	Commit(ctx context.Context, l Location, sha string) (Commit, error)
	// Files returns the tree of a fetched commit. In it a symbolic link is an entry
	// of type fs.ModeSymlink that fs.ReadLink reads; nothing is followed.
	// Submodules are empty directories. The tree is valid until ctx ends.
	Files(ctx context.Context, l Location, sha string) (fs.FS, error)
	// IsAncestor says whether old is new or one of its ancestors. A commit that is
	// not on disk is nobody's ancestor.
	IsAncestor(ctx context.Context, l Location, old, new string) (bool, error)
	// Keep pins commits, so that a force-push and a repack lose none of them.
	Keep(ctx context.Context, l Location, shas []string) error
}

// Errors that a Source wraps; ask with errors.Is.
var (
	// ErrEmpty: the repository has no commits yet.
	ErrEmpty = errors.New("the repository is empty")
	// ErrRefNotFound: the ref does not exist (any more).
	ErrRefNotFound = errors.New("ref not found")
	// ErrAuth: the remote refused the credentials, or wants some.
	ErrAuth = errors.New("access refused")
	// ErrUnreachable: the remote did not answer; worth another try later.
	ErrUnreachable = errors.New("remote unreachable")
)
