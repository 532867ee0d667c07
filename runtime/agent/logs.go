package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	v1 "k8s.io/api/core/v1"
)

// maxLogLine bounds a line of a log file; the runtime splits longer ones.
const maxLogLine = 64 << 10

// logLine is one record of a container's log, in the format of the CRI.
type logLine struct {
	time    time.Time
	stderr  bool
	partial bool
	text    []byte
}

// parseLogLine reads "<RFC3339Nano> stdout|stderr F|P <text>".
func parseLogLine(line []byte) (logLine, bool) {
	stamp, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return logLine{}, false
	}
	stream, rest, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return logLine{}, false
	}
	tag, text, ok := bytes.Cut(rest, []byte(" "))
	if !ok {
		return logLine{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return logLine{}, false
	}
	return logLine{
		time: t, stderr: string(stream) == "stderr", partial: string(tag) == "P",
		text: bytes.TrimSuffix(text, []byte("\n")),
	}, true
}

// logOptions is what a client asks of a log.
type logOptions struct {
	follow, previous, timestamps bool
	// tail is the number of lines from the end, or -1.
	tail int64
	// limit is the number of bytes, or -1.
	limit int64
	since time.Time
	// stream is the only one that is wanted (KEP-3288), Stdout or Stderr; both else.
	stream string
}

// parseLogOptions reads the query of a log request.
func parseLogOptions(q url.Values, now time.Time) (logOptions, error) {
	o := logOptions{tail: -1, limit: -1}
	var errs []error
	flag := func(name string) bool {
		v := q.Get(name)
		if v == "" {
			return false
		}
		b, err := strconv.ParseBool(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s=%q is not true or false", name, v))
		}
		return b
	}
	number := func(name string, least int64) int64 {
		v := q.Get(name)
		if v == "" {
			return -1
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < least {
			errs = append(errs, fmt.Errorf("%s=%q is not a number of at least %d", name, v, least))
		}
		return n
	}
	o.follow, o.previous, o.timestamps = flag("follow"), flag("previous"), flag("timestamps")
	o.tail, o.limit = number("tailLines", 0), number("limitBytes", 1)
	if secs := number("sinceSeconds", 1); secs > 0 {
		o.since = now.Add(-time.Duration(secs) * time.Second)
	}
	switch o.stream = q.Get("stream"); o.stream {
	case "", v1.LogStreamAll, v1.LogStreamStdout, v1.LogStreamStderr:
	default:
		errs = append(errs, fmt.Errorf("stream=%q is none of All, Stdout and Stderr", o.stream))
	}
	if v := q.Get("sinceTime"); v != "" {
		t, err := time.Parse(time.RFC3339, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("sinceTime=%q is not a time as RFC 3339 has it", v))
		}
		o.since = t
	}
	return o, errors.Join(errs...)
}

// logWriter prints records to a client.
type logWriter struct {
	opts  logOptions
	w     io.Writer
	left  int64
	begun bool
}

var errLimit = errors.New("byte limit reached")

func (lw *logWriter) write(line []byte) error {
	l, ok := parseLogLine(line)
	if !ok || l.time.Before(lw.opts.since) {
		return nil
	}
	if s := lw.opts.stream; s == v1.LogStreamStdout && l.stderr || s == v1.LogStreamStderr && !l.stderr {
		return nil
	}
	var b []byte
	if lw.opts.timestamps && !lw.begun {
		b = append(l.time.AppendFormat(nil, time.RFC3339Nano), ' ')
	}
	b = append(b, l.text...)
	if !l.partial {
		b = append(b, '\n')
	}
	lw.begun = l.partial
	if lw.opts.limit >= 0 {
		if int64(len(b)) >= lw.left {
			b = b[:lw.left]
			lw.left = 0
			if _, err := lw.w.Write(b); err != nil {
				return err
			}
			return errLimit
		}
		lw.left -= int64(len(b))
	}
	_, err := lw.w.Write(b)
	return err
}

// openLogs opens a log's files, oldest first: path.4 … path.1, path. A rotation
// renames them one by one; what is seen in the midst of it is looked at again.
func openLogs(path string) ([]*os.File, error) {
	for range 1000 {
		names, err := logNames(path)
		if err != nil {
			return nil, err
		}
		files := make([]*os.File, 0, len(names))
		for _, name := range names {
			f, err := os.Open(name)
			if errors.Is(err, os.ErrNotExist) {
				break
			}
			if err != nil {
				closeAll(files)
				return nil, fmt.Errorf("open log: %w", err)
			}
			files = append(files, f)
		}
		again, err := logNames(path)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		if slices.Equal(names, again) && stillNamed(files, names) {
			return files, nil
		}
		closeAll(files)
	}
	return nil, fmt.Errorf("open log %s: its files are renamed faster than they can be opened", path)
}

// logNames lists a log's files, oldest first.
func logNames(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("list logs: %w", err)
	}
	age := map[string]int{}
	var names []string
	for _, e := range entries {
		name := filepath.Join(filepath.Dir(path), e.Name())
		n, err := strconv.Atoi(strings.TrimPrefix(name, path+"."))
		if name == path || err == nil {
			age[name] = n
			names = append(names, name)
		}
	}
	sort.Slice(names, func(i, j int) bool { return age[names[i]] > age[names[j]] })
	return names, nil
}

// stillNamed says whether each file is the one that its name leads to.
func stillNamed(files []*os.File, names []string) bool {
	if len(files) != len(names) {
		return false
	}
	for i, f := range files {
		opened, err := f.Stat()
		if err != nil {
			return false
		}
		named, err := os.Stat(names[i])
		if err != nil || !os.SameFile(opened, named) {
			return false
		}
	}
	return true
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	if err != nil {
		return false
	}
	y, err := b.Stat()
	return err == nil && os.SameFile(x, y)
}

// seekTail moves the files to where their last n lines begin.
func seekTail(files []*os.File, n int64) error {
	for i := len(files) - 1; i >= 0; i-- {
		off, found, err := tailOffset(files[i], n)
		if err != nil {
			return fmt.Errorf("seek in log: %w", err)
		}
		if _, err := files[i].Seek(off, io.SeekStart); err != nil {
			return fmt.Errorf("seek in log: %w", err)
		}
		n -= found
	}
	return nil
}

// tailOffset is where the last n lines of a file begin, and how many they are.
func tailOffset(f *os.File, n int64) (offset, found int64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if n <= 0 {
		return info.Size(), 0, nil
	}
	buf := make([]byte, 32<<10)
	for end := info.Size(); end > 0; {
		begin := max(end-int64(len(buf)), 0)
		block := buf[:end-begin]
		if _, err := f.ReadAt(block, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for i := len(block) - 1; i >= 0; i-- {
			at := begin + int64(i) + 1
			if block[i] != '\n' || at == info.Size() {
				continue
			}
			if found++; found == n {
				return at, found, nil
			}
		}
		end = begin
	}
	if info.Size() > 0 {
		found++
	}
	return 0, found, nil
}

// logReader follows the files of one log.
type logReader struct {
	path string
	out  *logWriter
	f    *os.File
	// rest is the beginning of a line whose end has not been written yet.
	rest []byte
}

// drain writes what the present file holds beyond what was read.
func (r *logReader) drain() error {
	if r.f == nil {
		return nil
	}
	in := bufio.NewReaderSize(r.f, maxLogLine)
	for {
		line, err := in.ReadSlice('\n')
		if err == nil || errors.Is(err, bufio.ErrBufferFull) {
			if len(r.rest) > 0 {
				line = append(r.rest, line...)
				r.rest = nil
			}
			if err := r.out.write(line); err != nil {
				return err
			}
			continue
		}
		if len(r.rest)+len(line) < maxLogLine {
			r.rest = append(r.rest, line...)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return fmt.Errorf("read log: %w", err)
	}
}

// advance drains the present file and, if the log was rotated, those after it.
func (r *logReader) advance() error {
	for {
		// Looked at before the file is drained: what is written to a file is written
		// before it is renamed.
		next, err := r.next()
		if err != nil {
			return err
		}
		if err := r.drain(); err != nil {
			if next != nil {
				next.Close()
			}
			return err
		}
		if next == nil {
			return nil
		}
		if r.f != nil {
			r.f.Close()
		}
		r.f, r.rest = next, nil
	}
}

// next opens the file that came after the present one, or returns nil.
func (r *logReader) next() (*os.File, error) {
	files, err := openLogs(r.path)
	if err != nil || len(files) == 0 {
		return nil, err
	}
	// A file that is not there any more was older than all that are.
	at := -1
	if r.f != nil {
		at = slices.IndexFunc(files, func(f *os.File) bool { return sameFile(f, r.f) })
	}
	var next *os.File
	if at+1 < len(files) {
		next = files[at+1]
	}
	for _, f := range files {
		if f != next {
			f.Close()
		}
	}
	return next, nil
}

// readLog writes a log to w. With follow it goes on until ended is closed and
// everything is written, or until ctx ends.
func readLog(ctx context.Context, path string, opts logOptions, w io.Writer, flush func(), ended <-chan struct{}) error {
	err := copyLog(ctx, path, opts, &logWriter{opts: opts, w: w, left: opts.limit}, flush, ended)
	if errors.Is(err, errLimit) {
		return nil
	}
	return err
}

func copyLog(ctx context.Context, path string, opts logOptions, out *logWriter, flush func(), ended <-chan struct{}) error {
	var events chan fsnotify.Event
	var failures chan error
	if opts.follow {
		// Before the first read, so that nothing falls between reading and watching.
		watcher, err := fsnotify.NewWatcher()
		if err != nil {
			return fmt.Errorf("watch log: %w", err)
		}
		defer watcher.Close()
		if err := watcher.Add(filepath.Dir(path)); err != nil {
			return fmt.Errorf("watch log directory: %w", err)
		}
		events, failures = watcher.Events, watcher.Errors
	}
	files, err := openLogs(path)
	if err != nil {
		return err
	}
	if opts.tail >= 0 {
		if err := seekTail(files, opts.tail); err != nil {
			closeAll(files)
			return err
		}
	}
	r := &logReader{path: path, out: out}
	defer func() {
		if r.f != nil {
			r.f.Close()
		}
	}()
	for i, f := range files {
		if r.f != nil {
			r.f.Close()
		}
		r.f, r.rest = f, nil
		if err := r.drain(); err != nil {
			closeAll(files[i+1:])
			return err
		}
	}
	for opts.follow {
		flush()
		select {
		case <-ctx.Done():
			return nil
		case <-ended:
			return r.advance()
		case <-failures: // events were lost: look
		case ev := <-events:
			if !strings.HasPrefix(ev.Name, path) {
				continue
			}
		}
		if err := r.advance(); err != nil {
			return err
		}
	}
	return nil
}
