package disk

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctls of XFS that package unix does not have.
const (
	fsGetXattr    = 0x801c581f // FS_IOC_FSGETXATTR _IOR('X', 31, struct fsxattr)
	fsSetXattr    = 0x401c5820 // FS_IOC_FSSETXATTR _IOW('X', 32, struct fsxattr)
	xfsGeometryV1 = 0x80705864 // XFS_IOC_FSGEOMETRY_V1 _IOR('X', 100, struct xfs_fsop_geom_v1)
	xfsGrowData   = 0x4010586e // XFS_IOC_FSGROWFSDATA _IOW('X', 110, struct xfs_growfs_data)
	xfsToHandle   = 0xc038586a // XFS_IOC_FD_TO_HANDLE _IOWR('X', 106, struct xfs_fsop_handlereq)
	xfsOpenHandle = 0xc038586b // XFS_IOC_OPEN_BY_HANDLE _IOWR('X', 107, struct xfs_fsop_handlereq)

	xflagExtSize = 0x00000800
	xflagCowSize = 0x00010000
)

// extentHint is the size in which a disk's space is allocated: large, so that disks have
// few extents (a reflink costs time per extent), small enough to waste little.
const extentHint = mebibyte

// fsxattr is struct fsxattr of linux/fs.h.
type fsxattr struct {
	xflags     uint32
	extsize    uint32
	nextents   uint32
	projid     uint32
	cowextsize uint32
	_          [8]byte
}

// hintExtents asks XFS to allocate the empty file in large pieces, for first writes and
// for writes to shared extents.
func hintExtents(f *os.File) error {
	var x fsxattr
	if err := ioctlPointer(f, fsGetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("read extent hints of %s: %w", f.Name(), err)
	}
	x.xflags |= xflagExtSize | xflagCowSize
	x.extsize, x.cowextsize = extentHint, extentHint
	if err := ioctlPointer(f, fsSetXattr, unsafe.Pointer(&x)); err != nil {
		return fmt.Errorf("set extent hints of %s: %w", f.Name(), err)
	}
	return nil
}

// xfsHandleRequest is struct xfs_fsop_handlereq of xfs/xfs_fs.h, on 64-bit machines.
type xfsHandleRequest struct {
	fd     uint32
	_      uint32
	path   unsafe.Pointer
	flags  uint32
	_      uint32
	in     unsafe.Pointer
	inLen  uint32
	_      uint32
	out    unsafe.Pointer
	outLen unsafe.Pointer
}

// openUntimed opens a file of XFS once more, for reading and writing. Writes through the
// result leave the file's times alone, as XFS does for all files opened by handle. So a
// flush of a disk is a flush of the device, and no write to XFS's log before it only
// because the disk's file has a newer time.
func openUntimed(dir, f *os.File) (*os.File, error) {
	handle := make([]byte, 128) // struct xfs_handle has 24
	n := new(uint32)
	*n = uint32(len(handle))
	get := xfsHandleRequest{fd: uint32(f.Fd()), out: unsafe.Pointer(&handle[0]), outLen: unsafe.Pointer(n)}
	if err := ioctlPointer(f, xfsToHandle, unsafe.Pointer(&get)); err != nil {
		return nil, fmt.Errorf("get handle of %s: %w", f.Name(), err)
	}
	open := xfsHandleRequest{flags: unix.O_RDWR | unix.O_LARGEFILE, in: unsafe.Pointer(&handle[0]), inLen: *n}
	syscall.ForkLock.RLock() // the kernel knows no close-on-exec here
	defer syscall.ForkLock.RUnlock()
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), xfsOpenHandle, uintptr(unsafe.Pointer(&open)))
	if errno != 0 {
		return nil, fmt.Errorf("open %s by handle: %w", f.Name(), errno)
	}
	unix.CloseOnExec(int(fd))
	return os.NewFile(fd, f.Name()), nil
}

// xfsGeometry is struct xfs_fsop_geom_v1 of xfs/xfs_fs.h.
type xfsGeometry struct {
	blocksize    uint32
	rtextsize    uint32
	agblocks     uint32
	agcount      uint32
	logblocks    uint32
	sectsize     uint32
	inodesize    uint32
	imaxpct      uint32
	datablocks   uint64
	rtblocks     uint64
	rtextents    uint64
	logstart     uint64
	uuid         [16]byte
	sunit        uint32
	swidth       uint32
	version      int32
	flags        uint32
	logsectsize  uint32
	rtsectsize   uint32
	dirblocksize uint32
	_            uint32
}

// growXFS makes the mounted XFS fill a device of size bytes.
func growXFS(root *os.File, size int64) error {
	var g xfsGeometry
	if err := ioctlPointer(root, xfsGeometryV1, unsafe.Pointer(&g)); err != nil {
		return fmt.Errorf("read geometry of %s: %w", root.Name(), err)
	}
	want := struct {
		blocks  uint64
		imaxpct uint32
		_       uint32
	}{blocks: uint64(size) / uint64(g.blocksize), imaxpct: g.imaxpct}
	// Less than an allocation group's minimum (64 blocks) more is not worth it, and refused.
	if want.blocks < g.datablocks+64 {
		return nil
	}
	if err := ioctlPointer(root, xfsGrowData, unsafe.Pointer(&want)); err != nil {
		return fmt.Errorf("grow pool %s to %d blocks: %w", root.Name(), want.blocks, err)
	}
	return nil
}

// Names of file systems by statfs magic.
var fsNames = map[int64]string{
	unix.XFS_SUPER_MAGIC:   "xfs",
	unix.BTRFS_SUPER_MAGIC: "btrfs",
	unix.EXT4_SUPER_MAGIC:  "ext4",
	unix.TMPFS_MAGIC:       "tmpfs",
}
