package main

import "runtime"

// superviseUp starts `gitk8s up` and waits for its end. It keeps its thread to
// itself all the while: the kernel's parent-death signal is bound to the thread
// that started a process, and Go would end an idle one.
func (s *story) superviseUp(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := s.up.Start(); err != nil {
		s.ended <- err
		started <- err
		return
	}
	started <- nil
	s.ended <- s.up.Wait()
}
