package disk

import (
	"math"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// overflowID is what an owner outside the mapping looks like.
const overflowID = 65534

// checkIDs accepts ranges that do not hold the host's root or the invalid id 2^32-1.
func checkIDs(ids vserver.IDRange) error {
	if ids.First == 0 || ids.Size == 0 || uint64(ids.First)+uint64(ids.Size) > math.MaxUint32 {
		return fault.New(fault.Invalid, "id range of %d from %d is not a range of unprivileged ids", ids.Size, ids.First)
	}
	return nil
}

// shifted is the owner that a mount with this range shows for an owner on the disk.
func shifted(id uint32, ids vserver.IDRange) uint32 {
	if id >= ids.Size {
		return overflowID
	}
	return ids.First + id
}
