// Package mirror is the embedded engine: it keeps N copies of a volume on the disks of one machine, acknowledges a write when every
// in-sync copy has it, and lets a volume go only when the copies have proven that they are equal and on stable media.
//
// A [Session] is one epoch of one volume: it fences what came before, recovers, serves, and seals. [Engine] implements the
// contract of package engine with one process per attached volume; [RunEngine] is that process. DESIGN.md beside this
// file draws the on-disk format and the locking order.
package mirror
