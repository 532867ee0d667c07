// Package ingress serves Ingresses, and Gateways with their routes: it takes what comes
// in on a node's ports 80 and 443, or on the machine's own for `gitk8s up`, and on others
// that Gateways ask for, and sends each request to a pod.
//
// Compile turns the API's objects into a Table, which says for a host and a path
// which service is meant; a Proxy answers requests by it, and has for each service a pool
// of its pods' addresses, which picks one for each request. A Follower keeps them equal to
// what the API says, and a Publisher tells the API where Ingresses are reached and what is
// wrong with them.
//
// A plain request in HTTP/1.1 is answered by the goroutine that reads it (clientConn, turn,
// podConn), which is a coroutine of an epoll loop as long as all goes quickly (loop, task,
// loopConn; with TLS from the third request on); every other request by net/http
// (Proxy.serveAt, transport), which the connection is handed over to (server).
//
// Requests go to the pods directly, not by way of the service's address: so a request
// whose pod has just gone is sent to another one.
package ingress

// Names of docs/contracts.md.
const (
	// Controller is what an IngressClass says that is served here.
	Controller = "gitk8s.dev/ingress"
	// annotationPrefix begins the annotations of an Ingress that are acted on.
	annotationPrefix = "ingress.gitk8s.dev/"
	// classAnnotation is how an Ingress named its class before it had a field.
	classAnnotation = "kubernetes.io/ingress.class"
)
