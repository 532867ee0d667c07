package gitsource

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/go-git/go-billy/v5/osfs"
	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/cache"
	"github.com/go-git/go-git/v5/plumbing/format/packfile"
	"github.com/go-git/go-git/v5/plumbing/format/pktline"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/capability"
	"github.com/go-git/go-git/v5/plumbing/protocol/packp/sideband"
	"github.com/go-git/go-git/v5/storage/filesystem"
)

// repackAt is the number of packs at which a repository is repacked: each pack
// makes every look-up a little slower.
const repackAt = 50

// keepAlive is how often an empty progress packet shows the pusher that the
// connection lives.
const keepAlive = 5 * time.Second

// receive answers a push. The new objects wait in quarantine until everything
// has been checked; then the pack moves in and the references move.
func (s *Server) receive(w http.ResponseWriter, r *http.Request, key, dir string, body io.Reader) error {
	w.Header().Set("Content-Type", "application/x-git-receive-pack-result")
	w.Header().Set("Cache-Control", "no-cache")
	head := make([]byte, 4)
	if _, err := io.ReadFull(body, head); err != nil {
		return &httpError{http.StatusBadRequest, "an empty push"}
	}
	if string(head) == "0000" {
		return nil // git asks whether it is let in before it sends a large pack
	}
	body = io.MultiReader(bytes.NewReader(head), body)
	req := packp.NewReferenceUpdateRequest()
	if err := req.Decode(io.NopCloser(body)); err != nil {
		return &httpError{http.StatusBadRequest, "the push cannot be read: " + err.Error()}
	}
	if req.Capabilities.Supports(capability.PushOptions) {
		options := pktline.NewScanner(body)
		for options.Scan() && len(options.Bytes()) > 0 {
		}
	}
	if len(req.Commands) > maxRefUpdates {
		return &httpError{http.StatusBadRequest, fmt.Sprintf("a push moves at most %d references", maxRefUpdates)}
	}
	out := newReply(w, req.Capabilities.Supports(capability.Sideband64k))
	defer out.close()
	p := &push{Server: s, key: key, dir: dir, req: req, out: out, status: map[plumbing.ReferenceName]string{}}
	unpack := p.receive(r.Context(), body)
	report := packp.NewReportStatus()
	report.UnpackStatus = "ok"
	if unpack != nil {
		report.UnpackStatus = firstLine(unpack.Error())
	}
	for _, c := range req.Commands {
		st := "ok"
		if reason, bad := p.status[c.Name]; bad {
			st = reason
		} else if unpack != nil {
			st = "unpacker error"
		}
		report.CommandStatuses = append(report.CommandStatuses, &packp.CommandStatus{ReferenceName: c.Name, Status: st})
	}
	return out.report(report)
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return printable(line, 300)
}

// push is one push being received.
type push struct {
	*Server
	key, dir string
	req      *packp.ReferenceUpdateRequest
	out      *reply
	status   map[plumbing.ReferenceName]string // why a reference did not move
}

// receive does everything up to the rollouts. Its error is about the pack as a
// whole; single references are told in p.status.
func (p *push) receive(ctx context.Context, body io.Reader) error {
	quarantine, err := os.MkdirTemp(p.dir, "incoming-")
	if err != nil {
		return errors.New("no room for the push in the data directory: " + err.Error())
	}
	defer os.RemoveAll(quarantine)
	lock := p.repos.lock(p.dir)
	lock.RLock()
	moved, packs, err := p.accept(ctx, quarantine, body)
	lock.RUnlock()
	if err != nil {
		return err
	}
	if packs > repackAt {
		p.repack()
	}
	for _, m := range moved {
		// The pusher may go away; what it started goes on.
		if err := p.hooks.Pushed(p.background, m, p.out); err != nil {
			fmt.Fprintf(p.out, "%v\n", err)
		}
	}
	return nil
}

// accept checks and moves in. It returns the references that moved and the number
// of packs in the repository.
func (p *push) accept(ctx context.Context, quarantine string, body io.Reader) (moved []Push, packs int, err error) {
	base, err := open(p.dir)
	if err != nil {
		return nil, 0, err
	}
	defer base.close()
	fresh := filesystem.NewStorageWithOptions(osfs.New(quarantine, osfs.WithBoundOS()), cache.NewObjectLRU(objectCacheSize), filesystem.Options{KeepDescriptors: true})
	defer fresh.Close()
	needsPack := false
	for _, c := range p.req.Commands {
		needsPack = needsPack || c.Action() != packp.Delete
	}
	if needsPack {
		if err := p.unpack(fresh, quarantine, body); err != nil {
			return nil, 0, err
		}
	}
	both := &repository{storage: &overlay{Storage: fresh, base: base.storage}}
	var good []Push
	for _, c := range p.req.Commands {
		one, err := p.check(ctx, both, base, c)
		if err != nil {
			p.status[c.Name] = firstLine(err.Error())
			fmt.Fprintf(p.out, "%v\n", err)
			continue
		}
		good = append(good, one)
	}
	if len(good) == 0 || (len(good) < len(p.req.Commands) && p.req.Capabilities.Supports(capability.Atomic)) {
		for _, g := range good {
			p.status[plumbing.ReferenceName(g.Ref)] = "atomic push failed"
		}
		return nil, 0, nil
	}
	packs, err = moveIn(quarantine, p.dir)
	if err != nil {
		return nil, 0, fmt.Errorf("store the push: %w", err)
	}
	for _, g := range good {
		if err := p.move(g); err != nil {
			p.status[plumbing.ReferenceName(g.Ref)] = firstLine(err.Error())
			continue
		}
		g.Files = nil
		moved = append(moved, g)
	}
	return moved, packs, nil
}

// unpack writes the pack into quarantine. It is scanned first: the parser holds
// each object in memory, and a small pack can unpack to a huge one.
func (p *push) unpack(into *filesystem.Storage, quarantine string, body io.Reader) error {
	tmp, err := os.CreateTemp(quarantine, "pack-")
	if err != nil {
		return err
	}
	defer tmp.Close()
	if _, err := io.Copy(tmp, body); err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return fmt.Errorf("the push is larger than %d MiB", maxPushSize>>20)
		}
		return fmt.Errorf("receive the pack: %w", err)
	}
	if err := scanPack(tmp); err != nil {
		return err
	}
	if _, err := tmp.Seek(0, io.SeekStart); err != nil {
		return err
	}
	err = packfile.WritePackfileToObjectStorage(into, tmp)
	if err != nil && !errors.Is(err, packfile.ErrEmptyPackfile) {
		return fmt.Errorf("unpack: %w", err)
	}
	into.Reindex()
	return os.Remove(tmp.Name())
}

// scanPack refuses packs with objects that are too many or unpack to too much,
// deltas included, before anything is unpacked.
func scanPack(f *os.File) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	sc := packfile.NewScanner(f)
	_, n, err := sc.Header()
	if errors.Is(err, packfile.ErrEmptyPackfile) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the pack cannot be read: %w", err)
	}
	if n > maxObjects {
		return fmt.Errorf("the pack has %d objects, at most %d are taken", n, maxObjects)
	}
	for range n {
		h, err := sc.NextObjectHeader()
		if err != nil {
			return fmt.Errorf("the pack cannot be read: %w", err)
		}
		size := h.Length
		var start limitedBuffer
		if _, _, err := sc.NextObject(&start); err != nil {
			return fmt.Errorf("the pack cannot be read: %w", err)
		}
		if h.Type.IsDelta() {
			size = max(size, deltaResultSize(start.Bytes()))
		}
		if size > maxObjectSize {
			return fmt.Errorf("an object of the push has %d MiB, at most %d are taken", size>>20, maxObjectSize>>20)
		}
	}
	return nil
}

// limitedBuffer keeps the first bytes written to it: enough for a delta's header.
type limitedBuffer struct{ bytes.Buffer }

func (b *limitedBuffer) Write(p []byte) (int, error) {
	if room := 32 - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// deltaResultSize reads the second of the two sizes that begin a delta
// (gitformat-pack, "Deltified representation").
func deltaResultSize(b []byte) int64 {
	var size int64
	for range 2 {
		size = 0
		for shift := 0; len(b) > 0 && shift < 63; shift += 7 {
			c := b[0]
			b = b[1:]
			size |= int64(c&0x7f) << shift
			if c&0x80 == 0 {
				break
			}
		}
	}
	return size
}

// check says whether one reference may move.
func (p *push) check(ctx context.Context, both, base *repository, c *packp.Command) (Push, error) {
	one := Push{Key: p.key, Ref: string(c.Name)}
	// go-git decodes any name: "refs/heads/../../x" must not become a path.
	if err := c.Name.Validate(); err != nil || !(c.Name.IsBranch() || c.Name.IsTag()) {
		return one, fmt.Errorf("%q is not the name of a branch or tag", printable(string(c.Name), 100))
	}
	if !c.Old.IsZero() {
		one.Old = c.Old.String()
	}
	have, err := base.storage.Reference(c.Name)
	switch {
	case errors.Is(err, plumbing.ErrReferenceNotFound):
		if !c.Old.IsZero() {
			return one, errors.New("the reference is gone, fetch first")
		}
	case err != nil:
		return one, err
	case have.Hash() != c.Old:
		return one, errors.New("the reference has moved, fetch first")
	}
	if c.Action() == packp.Delete {
		return one, p.hooks.Check(ctx, one, p.out)
	}
	one.New = c.New.String()
	commit := c.New
	if c.Name.IsTag() {
		if commit, err = peel(both.storage, c.New); err != nil {
			return one, err
		}
	}
	if err := connected(ctx, both, base, commit); err != nil {
		return one, err
	}
	if one.Commit, err = both.commit(commit); err != nil {
		return one, err
	}
	if one.Files, err = both.files(commit.String()); err != nil {
		return one, err
	}
	return one, p.hooks.Check(ctx, one, p.out)
}

// move moves one reference, if it is still where the pusher saw it.
func (p *push) move(g Push) error {
	refLock.Lock()
	defer refLock.Unlock()
	repo, err := open(p.dir)
	if err != nil {
		return err
	}
	defer repo.close()
	name := plumbing.ReferenceName(g.Ref)
	have, err := repo.storage.Reference(name)
	if err == nil && have.Hash().String() != g.Old || errors.Is(err, plumbing.ErrReferenceNotFound) && g.Old != "" {
		return errors.New("the reference has moved, fetch first")
	}
	if g.New == "" {
		return repo.storage.RemoveReference(name)
	}
	return repo.storage.SetReference(plumbing.NewHashReference(name, plumbing.NewHash(g.New)))
}

// refLock makes compare-and-set of a reference atomic; go-git has none for
// deletions.
var refLock sync.Mutex

// moveIn moves the quarantined packs into the repository, each before its index:
// a pack without an index is not seen by readers.
func moveIn(quarantine, dir string) (packs int, err error) {
	to := filepath.Join(dir, "objects", "pack")
	if err := os.MkdirAll(to, 0o755); err != nil {
		return 0, err
	}
	from := filepath.Join(quarantine, "objects", "pack")
	for _, ext := range []string{"*.pack", "*.idx"} {
		files, err := filepath.Glob(filepath.Join(from, ext))
		if err != nil {
			return 0, err
		}
		for _, f := range files {
			if err := syncFile(f); err != nil {
				return 0, err
			}
			if err := os.Rename(f, filepath.Join(to, filepath.Base(f))); err != nil {
				return 0, err
			}
		}
	}
	if err := syncFile(to); err != nil {
		return 0, err
	}
	all, err := filepath.Glob(filepath.Join(to, "*.pack"))
	return len(all), err
}

func syncFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// reply writes a push's answer: progress on band 2 as it comes, the report on
// band 1 at the end. Safe for concurrent use; errors of progress are dropped, for
// the push goes on when the pusher is gone.
type reply struct {
	mu   sync.Mutex
	w    http.ResponseWriter
	mux  *sideband.Muxer // nil if the client wants no side band
	stop chan struct{}
	rest []byte // of an unfinished line
}

func newReply(w http.ResponseWriter, band bool) *reply {
	r := &reply{w: w, stop: make(chan struct{})}
	if !band {
		return r
	}
	r.mux = sideband.NewMuxer(sideband.Sideband64k, w)
	go func() {
		t := time.NewTicker(keepAlive)
		defer t.Stop()
		for {
			select {
			case <-r.stop:
				return
			case <-t.C:
				r.mu.Lock()
				_, _ = io.WriteString(r.w, "0005\x02")
				r.flush()
				r.mu.Unlock()
			}
		}
	}()
	return r
}

func (r *reply) close() { close(r.stop) }

func (r *reply) flush() { _ = http.NewResponseController(r.w).Flush() }

// Write sends whole lines to the pusher.
func (r *reply) Write(b []byte) (int, error) {
	if r.mux == nil {
		return len(b), nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rest = append(r.rest, b...)
	end := bytes.LastIndexByte(r.rest, '\n') + 1
	if end > 0 {
		_, _ = r.mux.WriteChannel(sideband.ProgressMessage, r.rest[:end])
		r.rest = append([]byte(nil), r.rest[end:]...)
		r.flush()
	}
	return len(b), nil
}

func (r *reply) report(st *packp.ReportStatus) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b bytes.Buffer
	if err := st.Encode(&b); err != nil {
		return err
	}
	if r.mux == nil {
		_, err := r.w.Write(b.Bytes())
		return err
	}
	if _, err := r.mux.Write(b.Bytes()); err != nil {
		return nil // the pusher is gone
	}
	_, _ = io.WriteString(r.w, "0000")
	r.flush()
	return nil
}
