// Package e2e holds the end-to-end tests: they start the real gitk8s binary as a
// user would and drive it from outside, with stock git, kubectl, an OCI client and
// client-go. In: the binary named by GITK8S_BIN (by default bin/gitk8s of this
// checkout), which must exist, and with GITK8S_TEST_TOOLS all tools that some tests
// need, which are left out otherwise. Out: nothing; every cluster lives in a temporary
// directory and the tests fail if one leaves a process, mount, network namespace or
// cgroup behind.
//
// Most tests share one cluster and use a namespace and Application each. Those that
// kill processes or fill disks have a cluster of their own.
package e2e
