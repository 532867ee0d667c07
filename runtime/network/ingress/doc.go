// Package ingress serves Ingresses, and Gateways with their routes: it takes what comes
// in on a node's ports 80 and 443, or on the machine's own for `gitk8s up`, and on others
// that Gateways ask for, and sends each request to a pod.
//
// Compile turns the API's objects into a Table, which says for a host and a path
// which service is meant; a Pool has the addresses of a service's pods and picks one
// for each request; Server is the HTTP server in front of both. Follow keeps them
// equal to what the API says, and Publish tells the API where Ingresses are reached
// and what is wrong with them.
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
