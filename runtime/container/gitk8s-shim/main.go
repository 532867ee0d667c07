// Gitk8s-shim is the shim of a sandbox as an executable of its own. The build puts
// it into runtime/container/driver/embedded before it builds gitk8s, which carries
// it along: beside a shim that is the whole of gitk8s it takes a third of the memory
// and starts a container a third faster, since nothing else has to be initialised.
package main

import (
	"fmt"
	"os"

	_ "gitk8s.dev/gitk8s/runtime/container/shim"
)

func main() {
	fmt.Fprintln(os.Stderr, "gitk8s-shim is started by a gitk8s agent, not by hand")
	os.Exit(2)
}
