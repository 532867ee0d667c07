package gitsource

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/plumbing/revlist"
)

// maxWants and maxHaves bound a negotiation.
const (
	maxWants = 10_000
	maxHaves = 100_000
)

// negotiation is one request of a fetch, protocol version 0 over stateless HTTP
// (gitprotocol-pack, section "Packfile Negotiation").
type negotiation struct {
	wants, haves []plumbing.Hash
	sideband     bool
	flushed      bool // a flush ended a round of haves
	done         bool
}

func readNegotiation(body io.Reader) (n negotiation, err error) {
	lines := pktline.NewScanner(io.LimitReader(body, maxRequestSize))
	wants := true
	for lines.Scan() {
		line := strings.TrimSuffix(string(lines.Bytes()), "\n")
		if line == "" {
			if !wants {
				n.flushed = true
			}
			wants = false
			continue
		}
		verb, rest, _ := strings.Cut(line, " ")
		sha, caps, _ := strings.Cut(rest, " ")
		switch {
		case verb == "want" && len(sha) == 40:
			if len(n.wants) == 0 {
				n.sideband = slices.Contains(strings.Fields(caps), "side-band-64k")
			}
			n.wants = append(n.wants, plumbing.NewHash(sha))
		case verb == "have" && len(sha) == 40:
			n.haves = append(n.haves, plumbing.NewHash(sha))
		case verb == "done":
			n.done = true
		default:
			return n, &httpError{http.StatusBadRequest, fmt.Sprintf("unexpected line %.40q; shallow and partial clones are not served", line)}
		}
		if len(n.wants) > maxWants || len(n.haves) > maxHaves {
			return n, &httpError{http.StatusBadRequest, "too many references"}
		}
	}
	if err := lines.Err(); err != nil {
		return n, &httpError{http.StatusBadRequest, "the request cannot be read"}
	}
	return n, nil
}

// upload answers a fetch: acknowledgements until the client is done, then the pack.
func (s *Server) upload(w http.ResponseWriter, dir string, body io.Reader) error {
	n, err := readNegotiation(body)
	if err != nil {
		return err
	}
	lock := s.repos.lock(dir)
	lock.RLock()
	defer lock.RUnlock()
	repo, err := open(dir)
	if err != nil {
		return err
	}
	defer repo.close()
	if err := repo.mayServe(n.wants); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/x-git-upload-pack-result")
	w.Header().Set("Cache-Control", "no-cache")
	enc := pktline.NewEncoder(w)
	var common []plumbing.Hash
	for _, h := range n.haves {
		if repo.storage.HasEncodedObject(h) == nil {
			common = append(common, h)
		}
	}
	if !n.done {
		for _, h := range common {
			if err := enc.EncodeString(fmt.Sprintf("ACK %s common\n", h)); err != nil {
				return err
			}
		}
		if len(common) > 0 {
			if err := enc.EncodeString(fmt.Sprintf("ACK %s ready\n", common[len(common)-1])); err != nil {
				return err
			}
		}
		if n.flushed || len(common) == 0 {
			return enc.EncodeString("NAK\n")
		}
		return nil
	}
	last := "NAK\n"
	if len(common) > 0 {
		last = fmt.Sprintf("ACK %s\n", common[len(common)-1])
	}
	if err := enc.EncodeString(last); err != nil {
		return err
	}
	objects, err := revlist.Objects(repo.storage, n.wants, common)
	if err != nil {
		return fmt.Errorf("list the objects to send: %w", err)
	}
	out := io.Writer(w)
	if n.sideband {
		out = sideband.NewMuxer(sideband.Sideband64k, w)
	}
	if _, err := packfile.NewEncoder(out, repo.storage, false).Encode(objects, 10); err != nil {
		return fmt.Errorf("send a pack: %w", err)
	}
	if n.sideband {
		return enc.Flush()
	}
	return nil
}

// mayServe refuses what no reference points at: objects of a refused push, or of
// history that was rewritten to hide something.
func (r *repository) mayServe(wants []plumbing.Hash) error {
	it, err := r.storage.IterReferences()
	if err != nil {
		return err
	}
	tips := map[plumbing.Hash]bool{}
	err = it.ForEach(func(ref *plumbing.Reference) error {
		tips[ref.Hash()] = !strings.HasPrefix(string(ref.Name()), keepPrefix) || tips[ref.Hash()]
		return nil
	})
	if err != nil {
		return err
	}
	if len(wants) == 0 {
		return &httpError{http.StatusBadRequest, "nothing is wanted"}
	}
	for _, h := range wants {
		if !tips[h] {
			return &httpError{http.StatusForbidden, fmt.Sprintf("no branch or tag points at %s", h)}
		}
	}
	return nil
}
