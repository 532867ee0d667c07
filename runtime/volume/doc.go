// Package volume makes the volumes of pods on one machine.
//
// In: a pod and the ConfigMaps and Secrets that it names. Out: directories and
// files below the pod's own directory that containers can bind-mount, kept up to
// date until TearDown. What the files hold (Payload) is computed by pure
// functions; writing them is a separate step that swaps all files of a volume at
// once.
//
// Names, paths and link targets that come from objects or from a container's own
// files are hostile: nothing is written or mounted outside of the volume.
package volume
