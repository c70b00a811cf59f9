package disk

import (
	"fmt"
	"strconv"
	"strings"
)

// leastUnit is what the smallest size of an image's disks is rounded up to.
const leastUnit = 64 * mebibyte

// leastFor is the smallest disk for an image: what resize2fs says its file system cannot
// do without, and room for a system to start and write its first files.
func leastFor(blocks, size int64) int64 {
	need := blocks * blockSize
	return min(roundUp(need+max(need/8, 16*mebibyte), leastUnit), size)
}

// parseMinimum reads the number of blocks that resize2fs -P prints after its last colon.
func parseMinimum(output string) (int64, error) {
	_, number, _ := strings.Cut(output[strings.LastIndexByte(output, '\n')+1:], ":")
	blocks, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if err != nil || blocks <= 0 || blocks > MaxSize/blockSize {
		return 0, fmt.Errorf("read smallest size of file system: resize2fs printed %q", output)
	}
	return blocks, nil
}
