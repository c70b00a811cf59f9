package image

// Limits bound what an import may use. Zero fields take the default.
type Limits struct {
	Size     int64 // unpacked bytes of all layers together, and of the tars they are in; default 64 GiB
	Download int64 // bytes that are fetched or uploaded; default 32 GiB
	Entries  int64 // files, directories and links in all layers together; default 2,000,000
}

// WithDefaults fills in what is zero.
func (l Limits) WithDefaults() Limits {
	if l.Size == 0 {
		l.Size = 64 << 30
	}
	if l.Download == 0 {
		l.Download = 32 << 30
	}
	if l.Entries == 0 {
		l.Entries = 2_000_000
	}
	return l
}

// Limits that are nobody's wish to change.
const (
	maxLayers   = 256
	maxManifest = 4 << 20  // manifest, index or config, bytes
	maxPath     = 4000     // a path in an archive, bytes; PATH_MAX is 4096
	maxName     = 255      // one component of it, bytes; what ext4 holds
	maxDepth    = 512      // components of it: removing a tree holds one descriptor per level
	maxID       = 65535    // owners: a server has ids 0 … 65535
	maxDirTimes = 64 << 20 // bytes of directory paths remembered until the end
	maxEnv      = 64 << 10 // bytes of the environment, of the entry point, and of the working directory
	maxWindow   = 128 << 20
	maxSource   = 4096
)
