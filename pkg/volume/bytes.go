package volume

import (
	"fmt"
	"strconv"
	"strings"
)

// Bytes is a size or an amount of data in bytes.
type Bytes int64

// Binary units.
const (
	KiB Bytes = 1 << 10
	MiB Bytes = 1 << 20
	GiB Bytes = 1 << 30
	TiB Bytes = 1 << 40
)

var units = []struct {
	name string
	size Bytes
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}}

// String gives b for people: "1 GiB", "1.5 MiB", "512 B".
func (b Bytes) String() string {
	for _, u := range units {
		if b >= u.size || b <= -u.size {
			s := strconv.FormatFloat(float64(b)/float64(u.size), 'f', 1, 64)
			return strings.TrimSuffix(s, ".0") + " " + u.name
		}
	}
	return fmt.Sprintf("%d B", int64(b))
}

// RoundUp returns the smallest multiple of unit that is not below b. unit is positive.
func (b Bytes) RoundUp(unit Bytes) Bytes { return (b + unit - 1) / unit * unit }
