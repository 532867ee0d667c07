// Package probe asks containers whether they are started, alive and ready.
//
// In: a v1.Probe, where to reach the container, and when it started. Out: a report
// of each change of the answer. Once asks one question; Tracker turns answers into
// a result by the thresholds (pure); Scheduler decides when to ask, with one timer
// for all probes of a node.
package probe
