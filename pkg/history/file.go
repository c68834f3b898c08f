package history

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"github.com/belay-storage/belay/pkg/volume"
)

// A file is lines. The first is a header, each other one an entry:
//
//	CCCCCCCC {"version":1,"dropped":N,"until":TIME}
//	CCCCCCCC {"time":…,"kind":…}
//
// C is the CRC-32C, in hexadecimal, of the volume's ID, a zero byte and the JSON. An entry is appended and synced; a line that does not
// check is the unfinished end of an append, or damage. Then, and to make room, the file is written anew as a whole.
const (
	format = 1
	crcLen = 8
	// fileMax is more than any file of ours has: a last append may go over BytesMax.
	fileMax = 2 * BytesMax
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

type header struct {
	Version int       `json:"version"`
	Dropped int       `json:"dropped,omitempty"`
	Until   time.Time `json:"until,omitzero"`
}

func checksum(id volume.ID, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(append([]byte(id), 0), castagnoli), castagnoli, body)
}

// encodeLine appends v as a line to out.
func encodeLine(out *bytes.Buffer, id volume.ID, v any) error {
	var body bytes.Buffer
	e := json.NewEncoder(&body) // ends in a newline
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	text := bytes.TrimSuffix(body.Bytes(), []byte("\n"))
	fmt.Fprintf(out, "%08x %s\n", checksum(id, text), text)
	return nil
}

func encodeEntries(id volume.ID, entries []Entry) ([]byte, error) {
	var out bytes.Buffer
	for _, e := range entries {
		if err := encodeLine(&out, id, e); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// encode returns the whole file.
func encode(h History) ([]byte, error) {
	var out bytes.Buffer
	if err := encodeLine(&out, h.Volume, header{Version: format, Dropped: h.Dropped, Until: h.Until}); err != nil {
		return nil, err
	}
	entries, err := encodeEntries(h.Volume, h.Entries)
	return append(out.Bytes(), entries...), err
}

// decode reads a file. Lines that do not check are counted and left out. An error only where another version of the program wrote it.
func decode(id volume.ID, raw []byte) (History, error) {
	h := History{Volume: id}
	for first := true; len(raw) > 0; first = false {
		var body []byte
		body, rest, whole := checkedLine(id, raw)
		switch taken := len(raw) - len(rest); {
		case !whole:
			h.Damaged += taken
		case first:
			if err := h.decodeHeader(body, taken); err != nil {
				return h, err
			}
		default:
			h.decodeEntry(body, taken)
		}
		raw = rest
	}
	return h, nil
}

// checkedLine takes the first line off raw; whole says that it is as it was written.
func checkedLine(id volume.ID, raw []byte) (body, rest []byte, whole bool) {
	text, rest, ended := bytes.Cut(raw, []byte("\n"))
	if !ended || len(text) < crcLen+2 || text[crcLen] != ' ' {
		return nil, rest, false
	}
	sum, err := strconv.ParseUint(string(text[:crcLen]), 16, 32)
	body = text[crcLen+1:]
	return body, rest, err == nil && uint32(sum) == checksum(id, body)
}

func (h *History) decodeHeader(body []byte, taken int) error {
	var top header
	if err := json.Unmarshal(body, &top); err != nil {
		h.Damaged += taken
		return nil
	}
	if top.Version != format {
		return fmt.Errorf("history of volume %s: version %d, this program knows %d", h.Volume, top.Version, format)
	}
	h.Dropped, h.Until = max(top.Dropped, 0), top.Until
	return nil
}

func (h *History) decodeEntry(body []byte, taken int) {
	var e Entry
	if err := json.Unmarshal(body, &e); err != nil || e.Kind == "" {
		h.Damaged += taken
		return
	}
	h.Entries = append(h.Entries, e)
}

// trim drops the oldest entries where there are too many, or where they take too much room.
func (h *History) trim() error {
	raw, err := encodeEntries(h.Volume, h.Entries)
	if err != nil || len(h.Entries) <= EntriesMax && len(raw) <= BytesMax {
		return err
	}
	gone := max(0, len(h.Entries)-EntriesMax*3/4)
	for _, e := range h.Entries[:gone] {
		raw = raw[lineLength(raw):]
		h.Until = e.Time
	}
	for len(raw) > BytesMax*3/4 {
		raw = raw[lineLength(raw):]
		h.Until = h.Entries[gone].Time
		gone++
	}
	h.Entries, h.Dropped = h.Entries[gone:], h.Dropped+gone
	return nil
}

func lineLength(raw []byte) int { return bytes.IndexByte(raw, '\n') + 1 }
