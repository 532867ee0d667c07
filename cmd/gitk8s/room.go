package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// leastRoom is what is kept free on the disk of the data directory for the store:
// below it the API takes no new objects.
const leastRoom = 64 << 20

// roomIn returns a check for the disk of a directory, which is cheap enough to be
// made before every write.
func roomIn(dir string) func() error {
	return func() error {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return fmt.Errorf("data directory %s: %w", dir, err)
		}
		if free := st.Bavail * uint64(st.Bsize); free < leastRoom {
			return fmt.Errorf("no space left on the disk of the data directory %s: %d MiB are free, %d are kept for the store; make room, and writes are taken again", dir, free>>20, uint64(leastRoom)>>20)
		}
		return nil
	}
}
