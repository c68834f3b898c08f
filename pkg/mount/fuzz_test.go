package mount

import (
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// kernelEscapes is how the kernel writes a name into mountinfo.
var kernelEscapes = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// FuzzMountNames: whatever names a mount has, it is read as what it is, and so is the next one.
func FuzzMountNames(f *testing.F) {
	f.Add("/", "/mnt/a b", "/dev/loop7", "rw,nosuid", "shared:1", uint32(7), uint32(0))
	f.Add("/", "/mnt/\r", "", "ro", "", uint32(0), uint32(39))
	f.Add("net:[4026531840]", "/run/\u00a0\u0085", "- -", "rw", "master:2 propagate_from:3", ^uint32(0), uint32(1))
	f.Fuzz(func(t *testing.T, root, path, source, options, tags string, major, minor uint32) {
		if strings.ContainsRune(root+path+source, 0) || strings.ContainsAny(options+tags, " \t\n\\\x00-") || options == "" {
			return
		}
		path = "/" + path
		if tags != "" {
			tags += " "
		}
		line := fmt.Sprintf("36 35 %d:%d %s %s %s %s- ext4 %s rw,%s\n", major, minor,
			kernelEscapes.Replace("/"+root), kernelEscapes.Replace(path), options, tags, kernelEscapes.Replace(source), options)
		all, err := parseTable(line + "37 35 0:5 / /next rw - tmpfs  rw\n")
		if err != nil || len(all) != 2 {
			t.Fatalf("%q: %+v, %v", line, all, err)
		}
		e, next := all[0], all[1]
		if e.Root != "/"+root || e.Path != path || e.Source != source || e.FSType != "ext4" || e.id != 36 || e.device != (blockDevice{major, minor}) {
			t.Errorf("%q reads as %+v", line, e)
		}
		if next.Path != "/next" || next.Source != "" || next.FSType != "tmpfs" {
			t.Errorf("after %q: %+v", line, next)
		}
	})
}

// FuzzMountTable: of a table of any text each line is a mount, or it is refused.
func FuzzMountTable(f *testing.F) {
	own, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(own))
	f.Add("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n")
	f.Add("36 35 98:0 / /mnt - rw\n")
	f.Add("\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseTable(text)
		if err == nil && len(all) != len(slices.Collect(strings.Lines(text))) {
			t.Errorf("%q: %d mounts", text, len(all))
		}
		for _, e := range all {
			if !strings.HasPrefix(e.Path, "/") || e.FSType == "" {
				t.Errorf("%q: %+v", text, e)
			}
		}
	})
}

// FuzzUnescape undoes what the kernel did, and makes nothing longer.
func FuzzUnescape(f *testing.F) {
	f.Add(`/a\040b`)
	f.Add(`\`)
	f.Add("a b\\\t\n")
	f.Fuzz(func(t *testing.T, s string) {
		if got := unescape(s); len(got) > len(s) {
			t.Errorf("%q grew to %q", s, got)
		}
		if got := unescape(kernelEscapes.Replace(s)); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
	})
}

// FuzzTranscript: of what a tool says the beginning and the end are kept, and how much is between them; of little, all.
func FuzzTranscript(f *testing.F) {
	f.Add([]byte("Pass 1: Checking\nPass 2: done\n"), 7, 1)
	f.Add([]byte("x"), 3, 3*transcriptPart)
	f.Add([]byte("\xff\n"), 1, transcriptPart)
	f.Fuzz(func(t *testing.T, text []byte, step, times int) {
		if len(text) == 0 || len(text) > 1<<12 || step <= 0 || times <= 0 || times > 1<<14 {
			return
		}
		kept, said := &transcript{step: "Pass", progress: func(line string) {
			if len(line) > 3*128 || strings.Contains(line, "\n") {
				t.Errorf("told of %q", line)
			}
		}}, 0
		for range times {
			for rest := text; len(rest) > 0 && said < 1<<16; {
				n, err := kept.Write(rest[:min(step, len(rest))])
				if n != min(step, len(rest)) || err != nil {
					t.Fatalf("%d written, %v", n, err)
				}
				said, rest = said+n, rest[n:]
			}
		}
		if len(kept.head)+len(kept.tail)+int(kept.left) != said || len(kept.head) > transcriptPart || len(kept.tail) > transcriptPart {
			t.Errorf("of %d bytes %d and %d were kept, %d left out", said, len(kept.head), len(kept.tail), kept.left)
		}
		if kept.left > 0 && len(kept.tail) != transcriptPart || len(kept.line) > 128 {
			t.Errorf("of %d bytes the last %d were kept, and a line of %d", said, len(kept.tail), len(kept.line))
		}
	})
}

// FuzzSignature: what blkid says of a device is read as it says it.
func FuzzSignature(f *testing.F) {
	f.Add("TYPE", "ext4", "DEVNAME=/dev/loop0\nUSAGE=filesystem\n")
	f.Add("PTTYPE", "dos", "")
	f.Fuzz(func(t *testing.T, key, value, rest string) {
		if strings.ContainsAny(key+value, "\n=") || strings.TrimSpace(key) != key || strings.TrimSpace(value) != value || key == "" {
			return
		}
		if got := parseExport([]byte(rest + "\n" + key + "=" + value + "\n")); got[key] != value {
			t.Errorf("%s is %q, not %q", key, got[key], value)
		}
	})
}

// FuzzSuperblock: only a whole superblock that says that all is well passes for a clean one.
func FuzzSuperblock(f *testing.F) {
	f.Add(uint16(0xEF53), uint16(1), uint32(0), uint32(0), uint64(1), uint64(0), superSize)
	f.Add(uint16(0xEF53), uint16(3), uint32(4), uint32(1), uint64(4), uint64(4096), superSize)
	f.Add(uint16(0), uint16(1), uint32(0), uint32(0), uint64(0), uint64(0), superSize-1)
	f.Fuzz(func(t *testing.T, magic, state uint16, incompat, errors uint32, flags, log uint64, size int) {
		le, ext4, btrfs := binary.LittleEndian, make([]byte, superSize), make([]byte, superSize)
		le.PutUint16(ext4[0x38:], magic)
		le.PutUint16(ext4[0x3A:], state)
		le.PutUint32(ext4[0x60:], incompat)
		le.PutUint32(ext4[0x194:], errors)
		copy(btrfs[0x40:], "_BHRfS_M")
		le.PutUint64(btrfs[0x38:], flags)
		le.PutUint64(btrfs[0x60:], log)
		whole := size >= superSize
		size = max(0, min(size, superSize))
		well := whole && magic == 0xEF53 && state&3 == 1 && incompat&4 == 0 && errors == 0
		if got := ext4Fault(ext4[:size]); (got == "") != well {
			t.Errorf("%d bytes, magic %#x, state %d, features %#x, %d errors: %q", size, magic, state, incompat, errors, got)
		}
		if got := btrfsFault(btrfs[:size]); (got == "") != (whole && flags&4 == 0 && log == 0) {
			t.Errorf("%d bytes, flags %#x, log at %d: %q", size, flags, log, got)
		}
	})
}
