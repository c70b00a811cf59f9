package disk

import (
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/reflejo/terraform-provider-reflejo/agent/cpuset"
	"github.com/reflejo/terraform-provider-reflejo/agent/snapshot"
	"github.com/reflejo/terraform-provider-reflejo/agent/undo"
)

// watch says what a device has written.
type watch interface {
	// drain returns the ranges whose writing has ended since the last call, or since the
	// watch began, in any order. A write that has ended before the call is in some call's
	// ranges. An error (errLost) says that not all is known, then and from then on.
	drain() ([]snapshot.Range, error)
	close()
}

const (
	tracedEvent = "events/block/block_rq_complete"

	// Of all buffers, and of the one of a processor, in bytes: an event takes about 100.
	// What a processor has at most is what the kernel lets anybody have.
	ringTotal, ringMost, ringLeast = 16 << 20, 512 << 10, 64 << 10

	// pollInterval is how often buffers are looked at when none is half full, in ms.
	pollInterval = 20
)

// tracker is a watch that uses the kernel's tracepoint for completed requests. Nothing is
// mounted or switched on for others: events go to buffers of this process, one per
// processor. It does not need what blktrace needs, debugfs, which a locked-down kernel
// denies.
//
// The event comes before the one who wrote is told that the write is done. So once a file
// system is frozen, which waits for all its writes, every one of them has had its event.
type tracker struct {
	format eventFormat
	online string // processors, as the kernel writes them
	stat   string // file
	began  int64  // bytes written when the watch began
	rings  []*ring
	stop   atomic.Bool
	ended  sync.WaitGroup

	mu    sync.Mutex
	dirty []snapshot.Range
	limit int   // of dirty, before it is merged
	seen  int64 // bytes of all events
	buf   []byte
	err   error
}

// watchWrites begins to watch a loop device.
func watchWrites(l *loopDevice) (watch, error) {
	t := &tracker{stat: fmt.Sprintf("/sys/block/loop%d/stat", l.number), limit: 1 << 12}
	var failed undo.Stack
	defer failed.Run()
	failed.Add(t.release)
	id, err := t.readEvent()
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", l.path(), err)
	}
	if t.online, err = onlineProcessors(); err != nil {
		return nil, fmt.Errorf("watch %s: %w", l.path(), err)
	}
	processors, err := cpuset.Parse(t.online)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", l.path(), err)
	}
	size := ringMost
	for size > ringLeast && size*len(processors) > ringTotal {
		size /= 2
	}
	filter := fmt.Sprintf(`dev == %d && !(rwbs ~ "R*")`, uint32(loopMajor)<<20|l.number)
	for _, n := range processors {
		r, err := openRing(id, n, size, filter)
		if err != nil {
			return nil, fmt.Errorf("watch %s: processor %d: %w", l.path(), n, err)
		}
		t.rings = append(t.rings, r)
	}
	t.buf = make([]byte, size)
	if t.began, err = t.written(); err != nil {
		return nil, err
	}
	t.ended.Go(t.collect)
	failed.Keep()
	return t, nil
}

// readEvent reads number and format of the event from a tracefs of our own.
func (t *tracker) readEvent() (id uint64, err error) {
	fs, err := mountDetached("tracefs", "tracefs", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, nil)
	if err != nil {
		return 0, err
	}
	defer fs.Close()
	read := func(name string) (string, error) {
		f, err := openAt(fs, path.Join(tracedEvent, name), unix.O_RDONLY, 0)
		if err != nil {
			return "", err
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, 1<<16))
		return strings.TrimSpace(string(b)), err
	}
	text, err := read("format")
	if err != nil {
		return 0, err
	}
	if t.format, err = parseFormat(text); err != nil {
		return 0, err
	}
	if text, err = read("id"); err != nil {
		return 0, err
	}
	return strconv.ParseUint(text, 10, 64)
}

func onlineProcessors() (string, error) {
	b, err := os.ReadFile("/sys/devices/system/cpu/online")
	return strings.TrimSpace(string(b)), err
}

// written is how many bytes the device has written and discarded so far.
func (t *tracker) written() (int64, error) {
	b, err := os.ReadFile(t.stat)
	if err != nil {
		return 0, err
	}
	return parseWritten(string(b))
}

// collect empties the buffers until the watch ends.
func (t *tracker) collect() {
	for !t.stop.Load() {
		fds := make([]unix.PollFd, len(t.rings))
		for i, r := range t.rings {
			fds[i] = unix.PollFd{Fd: int32(r.fd), Events: unix.POLLIN}
		}
		_, _ = unix.Poll(fds, pollInterval) // an interruption is as good as a timeout
		t.mu.Lock()
		t.empty()
		t.mu.Unlock()
	}
}

// empty takes all events out of the buffers.
func (t *tracker) empty() {
	for _, r := range t.rings {
		err := parseRecords(r.take(t.buf), t.format, func(w snapshot.Range) {
			t.seen += w.Length
			t.dirty = append(t.dirty, w)
			if len(t.dirty) >= t.limit { // what is written again and again takes room once
				t.dirty = mergeRanges(t.dirty, 1, MaxSize)
				t.limit = max(t.limit, 2*len(t.dirty))
			}
		})
		if err != nil {
			t.err = err
		}
	}
}

// drain implements watch. Two checks are made beside the kernel's own word for lost events:
// a processor that came meanwhile was not watched, and the device's statistics count what
// was written independently. (They are read first: more may be written before the buffers
// are emptied, not less.)
func (t *tracker) drain() ([]snapshot.Range, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	written, writtenErr := t.written()
	t.empty()
	online, onlineErr := onlineProcessors()
	if writtenErr != nil || onlineErr != nil || online != t.online || written-t.began > t.seen {
		t.err = errLost
	}
	dirty := t.dirty
	t.dirty = nil
	return dirty, t.err
}

func (t *tracker) close() {
	t.stop.Store(true)
	t.ended.Wait()
	t.release()
}

func (t *tracker) release() {
	for _, r := range t.rings {
		r.close()
	}
	t.rings = nil
}

// ring is the buffer of one processor.
type ring struct {
	fd   int
	mem  []byte
	head *uint64 // the kernel's: where it writes next
	tail *uint64 // ours: what we have read
	data []byte
}

// openRing begins to record an event of one processor in a buffer of size bytes, a power of 2.
func openRing(event uint64, processor, size int, filter string) (*ring, error) {
	attr := &unix.PerfEventAttr{
		Type:        unix.PERF_TYPE_TRACEPOINT,
		Config:      event,
		Sample:      1, // each
		Sample_type: unix.PERF_SAMPLE_RAW,
		Bits:        unix.PerfBitDisabled | unix.PerfBitWatermark,
		Wakeup:      uint32(size / 2),
	}
	attr.Size = uint32(unsafe.Sizeof(*attr))
	fd, err := unix.PerfEventOpen(attr, -1, processor, -1, unix.PERF_FLAG_FD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open event: %w", err)
	}
	r := &ring{fd: fd}
	page := unix.Getpagesize()
	if r.mem, err = unix.Mmap(fd, 0, page+size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		r.close()
		return nil, fmt.Errorf("map buffer of %d bytes: %w", size, err)
	}
	control := (*unix.PerfEventMmapPage)(unsafe.Pointer(&r.mem[0]))
	r.head, r.tail, r.data = &control.Data_head, &control.Data_tail, r.mem[page:]
	text, err := unix.BytePtrFromString(filter)
	if err == nil {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.PERF_EVENT_IOC_SET_FILTER, uintptr(unsafe.Pointer(text)))
		if errno != 0 {
			err = errno
		}
	}
	if err == nil {
		err = unix.IoctlSetInt(fd, unix.PERF_EVENT_IOC_ENABLE, 0)
	}
	if err != nil {
		r.close()
		return nil, fmt.Errorf("begin events %s: %w", filter, err)
	}
	return r, nil
}

// take moves what is in the buffer to b, which is as large.
func (r *ring) take(b []byte) []byte {
	head, tail := atomic.LoadUint64(r.head), *r.tail
	n := int(head - tail)
	if n > len(r.data) { // never: the kernel does not overtake the tail
		n = len(r.data)
	}
	at := int(tail % uint64(len(r.data)))
	copied := copy(b[:n], r.data[at:])
	copy(b[copied:n], r.data)
	atomic.StoreUint64(r.tail, head)
	return b[:n]
}

func (r *ring) close() {
	if r.mem != nil {
		_ = unix.Munmap(r.mem)
	}
	_ = unix.Close(r.fd)
}
