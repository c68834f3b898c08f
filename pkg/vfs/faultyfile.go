package vfs

type faultyFile struct {
	file File
	hook Hook
	name string
}

func (f *faultyFile) op(kind Kind, off, n int64, p []byte) *Op {
	return &Op{Kind: kind, Name: f.name, Offset: off, Len: n, Data: p}
}

func (f *faultyFile) ReadAt(p []byte, off int64) error {
	op := f.op(OpRead, off, int64(len(p)), p)
	return f.hook.do(op, func() error { return f.file.ReadAt(p, op.Offset) })
}

func (f *faultyFile) WriteAt(p []byte, off int64) error {
	op := f.op(OpWrite, off, int64(len(p)), p)
	return f.hook.do(op, func() error { return f.file.WriteAt(op.Data, op.Offset) })
}

func (f *faultyFile) Datasync() error {
	return f.hook.do(f.op(OpDatasync, 0, 0, nil), f.file.Datasync)
}

func (f *faultyFile) Punch(off, n int64) error {
	op := f.op(OpPunch, off, n, nil)
	return f.hook.do(op, func() error { return f.file.Punch(op.Offset, op.Len) })
}

func (f *faultyFile) Truncate(size int64) error {
	op := f.op(OpTruncate, size, 0, nil)
	return f.hook.do(op, func() error { return f.file.Truncate(op.Offset) })
}

func (f *faultyFile) NextData(off int64) (next int64, err error) {
	err = f.hook.do(f.op(OpNextData, off, 0, nil), func() error {
		next, err = f.file.NextData(off)
		return err
	})
	return next, err
}

func (f *faultyFile) Info() (info Info, err error) {
	err = f.hook.do(f.op(OpInfo, 0, 0, nil), func() error {
		info, err = f.file.Info()
		return err
	})
	return info, err
}

// Close closes the file even where the hook fails it: a descriptor is gone after close, whatever close says.
func (f *faultyFile) Close() error {
	closed := false
	err := f.hook.do(f.op(OpClose, 0, 0, nil), func() error {
		closed = true
		return f.file.Close()
	})
	if !closed {
		_ = f.file.Close()
	}
	return err
}
