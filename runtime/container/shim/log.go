package shim

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"gitk8s.dev/gitk8s/runtime/container"
)

// Bounds of a container's log where none are given: the defaults of the kubelet
// (containerLogMaxSize, containerLogMaxFiles) and the CRI's longest line.
const (
	maxLogSize  = 10 << 20
	maxLogFiles = 5
	maxLogLine  = 16 << 10
)

// logFile writes the log format of the CRI and rotates: path, path.1, …
// A full disk loses lines but never blocks the container.
type logFile struct {
	path     string
	maxSize  int64
	maxFiles int

	mu   sync.Mutex
	f    *os.File
	size int64
	buf  []byte
}

// newLogFile makes the log of a container; without a path it discards.
func newLogFile(cfg container.ContainerConfig) (*logFile, error) {
	path := cfg.LogPath
	l := &logFile{path: path, maxSize: cfg.LogMaxSize, maxFiles: cfg.LogMaxFiles}
	if l.maxSize <= 0 {
		l.maxSize = maxLogSize
	}
	if l.maxFiles <= 0 {
		l.maxFiles = maxLogFiles
	}
	if path == "" {
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make log directory: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("open log: %w", err)
	}
	l.f, l.size = f, st.Size()
	return l, nil
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
}

// copy writes what comes from r until it ends. The lines that came in one read
// go out in one write.
func (l *logFile) copy(stream string, r io.ReadCloser) {
	defer r.Close()
	in := bufio.NewReaderSize(r, maxLogLine)
	for {
		line, err := in.ReadSlice('\n')
		l.mu.Lock()
		for {
			l.add(stream, line, err)
			if err != nil && !errors.Is(err, bufio.ErrBufferFull) || !hasLine(in) {
				break
			}
			line, err = in.ReadSlice('\n')
		}
		l.flush()
		l.mu.Unlock()
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return // the end, or EIO: the way a terminal ends
		}
	}
}

// hasLine tells that a whole line can be read without waiting.
func hasLine(in *bufio.Reader) bool {
	waiting, _ := in.Peek(in.Buffered())
	for _, b := range waiting {
		if b == '\n' {
			return true
		}
	}
	return false
}

func (l *logFile) add(stream string, line []byte, err error) {
	if len(line) == 0 {
		return
	}
	tag := " F "
	if errors.Is(err, bufio.ErrBufferFull) {
		tag = " P "
	}
	l.buf = time.Now().UTC().AppendFormat(l.buf, time.RFC3339Nano)
	l.buf = append(append(append(l.buf, ' '), stream...), tag...)
	l.buf = append(l.buf, line...)
	if line[len(line)-1] != '\n' {
		l.buf = append(l.buf, '\n')
	}
}

func (l *logFile) flush() {
	if l.f != nil && len(l.buf) > 0 {
		if l.size > 0 && l.size+int64(len(l.buf)) > l.maxSize {
			l.rotate()
		}
		n, _ := l.f.Write(l.buf)
		l.size += int64(n)
	}
	if cap(l.buf) > 4*maxLogLine {
		l.buf = nil
	}
	l.buf = l.buf[:0]
}

// rotate keeps the current file when a new one cannot be made.
func (l *logFile) rotate() {
	for i := l.maxFiles - 2; i >= 1; i-- {
		_ = os.Rename(l.path+"."+strconv.Itoa(i), l.path+"."+strconv.Itoa(i+1))
	}
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		_ = os.Rename(l.path+".1", l.path)
		return
	}
	_ = l.f.Close()
	l.f, l.size = f, 0
}
