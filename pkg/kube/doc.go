// Package kube is what Belay does in a Kubernetes cluster beside CSI: it finds the nodes, knows which of them are lost, makes refusals visible as
// Events, carries out an operator's override, and says when a node is drained.
//
// It never deletes a VolumeAttachment, takes a finalizer away or forces anything: see DESIGN.md, and guard.go, which every request passes. Nothing
// that it does, does twice or leaves undone can lose a write: safety rests on the engine's fence.
package kube

// The words of Belay in the cluster's objects.
const (
	prefix = "belay.storage/"

	// AnnotationOverride on a VolumeAttachment is an operator's override: see ParseOverride.
	AnnotationOverride = prefix + "override"
	// AnnotationOverrideResult is what became of it.
	AnnotationOverrideResult = prefix + "override-result"
	// AnnotationRestart on a VolumeAttachment lists the pods that were asked to restart, and for which lost device.
	AnnotationRestart = prefix + "restart"
	// ParameterRestart of a StorageClass, "true": pods may be asked to restart when their device is lost.
	ParameterRestart = "restartOnDeviceLoss"
	// ConditionDetached of a Node: True where no volume of Belay is attached or staged there.
	ConditionDetached = "BelayVolumesDetached"
	// TaintOutOfService is how Kubernetes is told that a node is off (KEP 2268).
	TaintOutOfService = "node.kubernetes.io/out-of-service"
	// LeaseName is the Lease of leader election.
	LeaseName = "belay-controller"
)

// Reasons of Events.
const (
	ReasonRefused          = "DetachRefused"
	ReasonWaiting          = "DetachWaiting"
	ReasonFinished         = "DetachFinished"
	ReasonForced           = "DetachForced"
	ReasonFenced           = "VolumeFenced"
	ReasonQuarantined      = "VolumeQuarantined"
	ReasonDeviceLost       = "DeviceLost"
	ReasonRestart          = "RestartRequested"
	ReasonUnclean          = "FilesystemUnclean"
	ReasonDamaged          = "FilesystemDamaged"
	ReasonNodeFenced       = "NodeFenced"
	ReasonOverrideRejected = "OverrideRejected"
	ReasonOverrideDone     = "OverrideDone"
)
