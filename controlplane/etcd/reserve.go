package etcd

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
)

// reserveBytes are blocks of the disk that the database owns before it needs them.
// etcd ends its process when the database cannot grow; with them, the small writes
// that never cease (leases, statuses) go on for days after somebody else has filled
// the disk, since each compaction frees the pages of the ones before. The log needs
// no such thing: etcd itself allocates it in segments of 64 MB, one ahead.
const reserveBytes = 32 << 20

// reserveEvery is how often the reserve is filled up.
const reserveEvery = time.Second

// keepReserve fills the reserve up until the server is closed.
func (s *Server) keepReserve(dataDir string) {
	file := filepath.Join(dataDir, "member", "snap", "db")
	tick := time.NewTicker(reserveEvery)
	defer tick.Stop()
	covered, failed := int64(0), false
	for {
		end, err := reserve(file, covered)
		if err != nil && !failed {
			slog.Warn("the store has no reserve on the disk: make room in the data directory", "error", err)
		}
		covered, failed = max(covered, end), err != nil
		select {
		case <-s.closed:
			return
		case <-tick.C:
		}
	}
}

// reserve allocates a file up to reserveBytes beyond its size, which stays as it is,
// unless that is covered already. It returns how far the file is allocated.
func reserve(file string, covered int64) (end int64, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	if end = info.Size() + reserveBytes; end <= covered {
		return end, nil
	}
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, end)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return end, nil // such a file system has no blocks to own
	}
	if err != nil {
		return 0, &fs.PathError{Op: "fallocate", Path: file, Err: err}
	}
	return end, nil
}

// lastWords is a logger that says why etcd ends the process, as it does when its
// files cannot be written, and nothing else.
func lastWords() *zap.Logger {
	encoder := zapcore.NewConsoleEncoder(zapcore.EncoderConfig{MessageKey: "msg", ConsoleSeparator: " "})
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(prefixed{os.Stderr}), zapcore.DPanicLevel))
}

// prefixed writes whole entries.
type prefixed struct{ *os.File }

func (p prefixed) Write(b []byte) (int, error) {
	if _, err := fmt.Fprintf(p.File, "gitk8s: etcd cannot go on; what it acknowledged is on the disk, start again after the fault is repaired: %s", b); err != nil {
		return 0, err
	}
	return len(b), nil
}
