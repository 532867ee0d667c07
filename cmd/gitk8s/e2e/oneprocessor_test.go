package e2e

import (
	"errors"
	"testing"
)

// TestOneProcessor starts a cluster where everything takes its turn: on a machine with a
// single processor.
func TestOneProcessor(t *testing.T) {
	c := newCluster("one-processor")
	c.under = []string{"taskset", "1"}
	t.Cleanup(func() {
		if err := c.destroy(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(c.start(), c.pushImages()); err != nil {
		t.Fatal(err)
	}
	ns := c.namespace(t, "one")
	c.apply(t, ns, servicePods)
	c.awaitPod(t, ns, "only", "it is ready", ready)
}
