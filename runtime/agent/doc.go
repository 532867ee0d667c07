// Package agent is the worker: it runs the pods that are bound to one node.
//
// In: the pods of the node and the ConfigMaps, Secrets and Services that they need,
// by watches of the Kubernetes API with the node's own identity; the ends of
// containers and the answers of probes. Out: sandboxes and containers in a
// container.Runtime, the pods' and the node's status, events, and an HTTPS server
// for logs, exec and port-forward.
//
// Each pod has one goroutine (worker) that owns the pod's state. Whatever happens
// is a message to it; after each it asks decide, a pure function of the state and
// the time, what to do, starts that in the background, and publishes the status
// that buildStatus, pure as well, computes. Nothing polls.
//
// Stopping or killing an agent leaves its containers alone; the next one finds
// them in Runtime.List and goes on. What the runtime does not know of a container
// (its image, how often it crashed) is in a small file per pod in DataDir.
package agent
