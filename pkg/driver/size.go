package driver

import (
	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/belay-storage/belay/pkg/volume"
)

const (
	// sizeDefault is the size of a volume for which none was asked.
	sizeDefault = volume.GiB
	// sizeStep is the unit of sizes: digests keep a sum for every 4 MiB.
	sizeStep = 4 * volume.MiB
	// sizeMax keeps the arithmetic from overflowing; engines have smaller limits of their own.
	sizeMax = volume.Bytes(1) << 60
)

// sizeLeast is what mkfs of each filesystem wants.
var sizeLeast = map[string]volume.Bytes{"ext4": 8 * volume.MiB, "xfs": 300 * volume.MiB, "btrfs": 128 * volume.MiB}

// sizeRange is a CapacityRange that was understood. A limit of 0 is none.
type sizeRange struct{ required, limit volume.Bytes }

func parseRange(r *csi.CapacityRange) (sizeRange, error) {
	s := sizeRange{volume.Bytes(r.GetRequiredBytes()), volume.Bytes(r.GetLimitBytes())}
	switch {
	case s.required < 0 || s.limit < 0:
		return s, answer(codes.OutOfRange, "capacity range: %d to %d is negative", s.required, s.limit)
	case s.limit > 0 && s.required > s.limit:
		return s, answer(codes.OutOfRange, "capacity range: required %d is more than the limit %d", s.required, s.limit)
	case s.required > sizeMax:
		return s, answer(codes.OutOfRange, "capacity range: required %d is more than any volume can have (%s)", s.required, sizeMax)
	}
	return s, nil
}

// holds says whether a volume of that size satisfies the range.
func (s sizeRange) holds(size volume.Bytes) bool {
	return size >= s.required && (s.limit == 0 || size <= s.limit)
}

// choose returns the smallest size that can be made, is in the range and not below least.
func (s sizeRange) choose(least volume.Bytes) (volume.Bytes, error) {
	want := s.required
	if want == 0 {
		want = sizeDefault
		if s.limit > 0 {
			want = min(want, s.limit/sizeStep*sizeStep)
		}
	}
	size := max(want, least, sizeStep).RoundUp(sizeStep)
	if !s.holds(size) {
		return 0, answer(codes.OutOfRange, "capacity range: the limit is %s (%d bytes) and the smallest volume for it %s: sizes are multiples of %s, at least %s",
			s.limit, s.limit, size, sizeStep, max(least, sizeStep))
	}
	return size, nil
}
