// Package garbagecollector deletes what nothing owns any more, as Kubernetes'
// "Garbage Collection" and "Owners and Dependents" pages describe: dependents in
// the background, dependents before their owner in the foreground, and dependents
// that are to be left behind.
//
// It watches the metadata of every kind that discovery lists and keeps a graph of
// owners and dependents by UID. Owners that are named and were not seen are in the
// graph as virtual nodes until a live look says whether they exist; nothing is
// deleted on the word of a cache alone.
//
// The package uses client-go only.
package garbagecollector
