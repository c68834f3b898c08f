// Package policies tries the admission policies of deploy/ on a real API server: who may override the gate, and what may be run in Belay's pods.
package policies
