package vfs_test

import (
	"errors"
	"io/fs"
	"reflect"
	"syscall"
	"testing"

	"github.com/belay-storage/belay/pkg/vfs"
)

// everyCall makes each call there is once and returns the first error.
func everyCall(fsys vfs.FS) error {
	if err := fsys.Mkdir("/d"); err != nil {
		return err
	}
	f, err := fsys.Open("/d/f", vfs.Create)
	if err != nil {
		return err
	}
	_, nextErr := f.NextData(0)
	_, infoErr := f.Info()
	fileErr := errors.Join(f.WriteAt([]byte("abcd"), 2), f.ReadAt(make([]byte, 4), 0), f.Datasync(), f.Punch(0, 3),
		f.Truncate(5), nextErr, infoErr, f.Close())
	_, dirErr := fsys.ReadDir("/d")
	_, statErr := fsys.Stat("/d/f")
	_, spaceErr := fsys.Space("/")
	lock, lockErr := fsys.Lock("/lock", "me")
	if lock != nil {
		lockErr = lock.Unlock()
	}
	return errors.Join(fileErr, dirErr, statErr, spaceErr, lockErr, fsys.MkdirAll("/d/e"), fsys.SyncDir("/d"),
		fsys.Rename("/d/f", "/d/g"), fsys.Remove("/d/g"), fsys.RemoveAll("/d"))
}

var everyKind = []vfs.Kind{
	vfs.OpMkdir, vfs.OpOpen, vfs.OpNextData, vfs.OpInfo, vfs.OpWrite, vfs.OpRead, vfs.OpDatasync, vfs.OpPunch,
	vfs.OpTruncate, vfs.OpClose, vfs.OpReadDir, vfs.OpStat, vfs.OpSpace, vfs.OpLock, vfs.OpUnlock, vfs.OpMkdirAll,
	vfs.OpSyncDir, vfs.OpRename, vfs.OpRemove, vfs.OpRemoveAll,
}

func TestTraceSeesEveryCall(t *testing.T) {
	var trace vfs.Trace
	must(t, everyCall(vfs.Faulty(vfs.NewMem(), trace.Hook)))
	var kinds []vfs.Kind
	for _, op := range trace.Ops() {
		kinds = append(kinds, op.Kind)
		switch op.Kind {
		case vfs.OpWrite:
			if want := (vfs.Op{Kind: vfs.OpWrite, Name: "/d/f", Offset: 2, Len: 4}); !reflect.DeepEqual(op, want) {
				t.Errorf("%+v", op)
			}
		case vfs.OpRename:
			if op.Name != "/d/f" || op.To != "/d/g" {
				t.Errorf("%+v", op)
			}
		}
	}
	if !reflect.DeepEqual(kinds, everyKind) {
		t.Fatalf("%v", kinds)
	}
}

// TestEveryKindCanFail fails each kind before the call and after it.
func TestEveryKindCanFail(t *testing.T) {
	for _, kind := range everyKind {
		m := vfs.NewMem()
		err := everyCall(vfs.Faulty(m, vfs.FailNth(1, syscall.EIO, kind)))
		wantErr(t, err, syscall.EIO)
		err = everyCall(vfs.Faulty(vfs.NewMem(), func(op *vfs.Op) error {
			if op.Kind == kind {
				op.Then = func(err error) error { return errors.Join(err, syscall.ENXIO) }
			}
			return nil
		}))
		wantErr(t, err, syscall.ENXIO)
	}
}

func TestFailedCallIsNotMade(t *testing.T) {
	m := vfs.NewMem()
	fsys := vfs.Faulty(m, vfs.FailNth(2, syscall.ENOSPC, vfs.OpWrite))
	f := open(t, fsys, "/f", vfs.Create)
	must(t, f.WriteAt([]byte("11"), 0))
	wantErr(t, f.WriteAt([]byte("22"), 0), syscall.ENOSPC)
	wantData(t, f, 0, []byte("11"))
	must(t, f.WriteAt([]byte("33"), 0))
	wantData(t, f, 0, []byte("33"))
}

func TestFailFromStaysFailed(t *testing.T) {
	fsys := vfs.Faulty(vfs.NewMem(), vfs.FailFrom(3, syscall.ENXIO))
	f := open(t, fsys, "/f", vfs.Create) // 1
	must(t, f.WriteAt([]byte("11"), 0))  // 2
	wantErr(t, f.WriteAt([]byte("22"), 0), syscall.ENXIO)
	wantErr(t, f.Datasync(), syscall.ENXIO)
	wantErr(t, fsys.Mkdir("/d"), syscall.ENXIO)
	wantData(t, f, 0, []byte("11"))
}

func TestLostMisdirectedAndRottenData(t *testing.T) {
	hook := func(*vfs.Op) error { return nil }
	m := vfs.NewMem()
	f := open(t, vfs.Faulty(m, func(op *vfs.Op) error { return hook(op) }), "/f", vfs.Create)
	must(t, f.WriteAt([]byte("abcdef"), 0))

	hook = onWrite(func(*vfs.Op) error { return vfs.ErrSkip })
	must(t, f.WriteAt([]byte("x"), 0))
	wantData(t, f, 0, []byte("abcdef"))

	hook = onWrite(func(op *vfs.Op) error { op.Offset += 2; return nil })
	must(t, f.WriteAt([]byte("x"), 0))
	wantData(t, f, 0, []byte("abxdef"))

	hook = onWrite(func(op *vfs.Op) error { op.Data = op.Data[:1]; return nil })
	must(t, f.WriteAt([]byte("yz"), 4))
	wantData(t, f, 0, []byte("abxdyf"))

	hook = func(op *vfs.Op) error {
		if op.Kind == vfs.OpRead {
			op.Then = func(err error) error { op.Data[0] ^= 1; return err }
		}
		return nil
	}
	p := make([]byte, 2)
	must(t, f.ReadAt(p, 0))
	if string(p) != "`b" {
		t.Fatalf("%q", p)
	}
}

func onWrite(h vfs.Hook) vfs.Hook {
	return func(op *vfs.Op) error {
		if op.Kind != vfs.OpWrite {
			return nil
		}
		return h(op)
	}
}

// TestFailedSyncWithWritesDropped is what Linux does: the sync fails once, the pages are gone, the next one succeeds.
func TestFailedSyncWithWritesDropped(t *testing.T) {
	m := vfs.NewMem()
	first := true
	f := open(t, vfs.Faulty(m, func(op *vfs.Op) error {
		if op.Kind != vfs.OpDatasync || !first {
			return nil
		}
		first = false
		return errors.Join(syscall.EIO, m.LoseUnsynced(op.Name, nil))
	}), "/f", vfs.Create)
	must(t, f.WriteAt([]byte("lost"), 0))
	wantErr(t, f.Datasync(), syscall.EIO)
	must(t, f.Datasync())
	wantData(t, f, 0, make([]byte, 4))
}

func TestFailedOpenLeavesNothingOpen(t *testing.T) {
	m := vfs.NewMem()
	fsys := vfs.Faulty(m, func(op *vfs.Op) error {
		op.Then = func(error) error { return syscall.EMFILE }
		return nil
	})
	_, err := fsys.Open("/f", vfs.Create)
	wantErr(t, err, syscall.EMFILE)
	_, err = fsys.Lock("/lock", "me")
	wantErr(t, err, syscall.EMFILE)
	_, err = m.Lock("/lock", "me")
	must(t, err)
}

func TestHooksStopAtTheFirstError(t *testing.T) {
	var trace vfs.Trace
	fsys := vfs.Faulty(vfs.NewMem(), vfs.Hooks(vfs.FailNth(1, fs.ErrPermission), trace.Hook))
	wantErr(t, fsys.Mkdir("/d"), fs.ErrPermission)
	must(t, fsys.Mkdir("/d"))
	if len(trace.Ops()) != 1 {
		t.Fatalf("%v", trace.Ops())
	}
}
