package mirror

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/belay-storage/belay/pkg/engine"
	"github.com/belay-storage/belay/pkg/mirror/quorum"
)

// Parameters of a StorageClass that this engine knows.
const (
	ParameterReplicas  = "replicas"  // 1 to 5
	ParameterVerify    = "verify"    // how often everything is read again: a duration, or "off"
	ParameterBlockSize = "blockSize" // logical block size of the device: 4096 or 512
)

// Defaults of the parameters. A week between full verifications reads a terabyte at under 2 MiB/s.
const (
	replicasDefault  = 3
	verifyDefault    = 7 * 24 * time.Hour
	verifyMin        = time.Second
	blockSizeDefault = 4096
	verifyOff        = "off"
)

var known = strings.Join([]string{ParameterReplicas, ParameterVerify, ParameterBlockSize}, ", ")

// layout is what the parameters ask for.
type layout struct {
	replicas  int
	blockSize int
}

// parse reads the parameters; stores is how many there are. Where fewer than the default exist and none was asked for, all are used.
func parse(parameters map[string]string, stores int) (layout, error) {
	out := layout{replicas: max(1, min(replicasDefault, stores)), blockSize: blockSizeDefault}
	for k, v := range parameters {
		var err error
		switch k {
		case ParameterReplicas:
			out.replicas, err = parseReplicas(v, stores)
		case ParameterBlockSize:
			out.blockSize, err = parseBlockSize(v)
		case ParameterVerify:
			_, _, err = parseVerify(v)
		default:
			err = fmt.Errorf("unknown parameter; known are fsType, %s", known)
		}
		if err != nil {
			return out, fmt.Errorf("%w parameter %s=%q: %w", engine.ErrInvalid, k, v, err)
		}
	}
	return out, nil
}

func parseReplicas(v string, stores int) (int, error) {
	n, err := strconv.Atoi(v)
	switch {
	case err != nil || n < 1 || n > quorum.ReplicasMax:
		return 0, fmt.Errorf("want a number from 1 to %d", quorum.ReplicasMax)
	case n > stores:
		return 0, fmt.Errorf("this node has %d stores; each replica needs its own", stores)
	}
	return n, nil
}

func parseBlockSize(v string) (int, error) {
	if v != "512" && v != "4096" {
		return 0, fmt.Errorf("want 512 or 4096")
	}
	return strconv.Atoi(v)
}

func parseVerify(v string) (interval time.Duration, on bool, err error) {
	if v == verifyOff {
		return 0, false, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < verifyMin {
		return 0, false, fmt.Errorf("want a duration of at least %s, as 168h or 30m, or %q", verifyMin, verifyOff)
	}
	return d, true, nil
}

// verifyInterval is the interval of a volume that was created with these parameters.
func verifyInterval(parameters map[string]string) (interval time.Duration, on bool) {
	v, asked := parameters[ParameterVerify]
	if !asked {
		return verifyDefault, true
	}
	interval, on, err := parseVerify(v)
	return interval, on && err == nil
}
