// Package backup keeps snapshots off the pool, each as one self-contained file: in a
// directory, at another host, or in a store that speaks S3.
//
// The pieces:
//
//	manifest.go  what a file says of itself, first
//	format.go    how a file is laid out: frames, sums, damage
//	encode.go    writes a file, also on from where it was interrupted
//	decode.go    reads a file; encode.go's mirror image
//	content.go   snapshot to file; a full file and its increments to a disk
//	target.go    where files are kept; dir.go and s3.go do
//	claim.go     who has a server, said beside its backups
//	record.go    what a backup is here ([Request], [Record], [View])
//	manager.go   keeps the records, runs what is under way; goes on with what a killed agent left
//	write.go     makes a backup: full or increment, file, end
//	catalog.go   what a target holds, whoever made it
//	import.go    reads a backup back: to verify it, or to a snapshot
//	delete.go    deletes what nothing builds on
//	policy.go    runs the servers' policies
//	edges.go     snapshots, servers and stores as this package needs them
//
// # The file
//
// A file has a head, frames, and an end. Numbers are big-endian. It is written front to
// back and never changed, so that every target can hold it; what is complete of an
// interrupted file stays. Ranges of the disk ascend through the file.
//
//	head
//	offset   size  field
//	0        8     magic: 89 52 42 4b 0d 0a 1a 0a (a transfer as text would change it)
//	8        4     format version: 1
//	12       4     length m of the manifest, 1 … 1 MiB
//	16       m     manifest, JSON (type Manifest)
//	16+m     32    sum: sha256 of everything before it
//
//	frame
//	0        1     kind: 1 data, 2 zeros, 3 end
//	1        3     zero
//	4        8     offset in the disk, bytes
//	12       8     length in the disk, bytes; of data at most 1 MiB, and within one chunk of 1 MiB
//	20       4     length p of the payload; of zeros 0, of the end 24
//	24       4     CRC-32C of the 24 bytes before it
//	28       p     payload: the data as one zstd frame
//	28+p     32    sum: sha256 of the sum before this frame, then of the 28+p bytes of the frame
//
//	payload of the end, whose offset is the disk's size and whose length is 0
//	0        8     frames before it
//	8        8     bytes of data in the disk
//	16       8     bytes of zeros in the disk
//
// In a full file what no frame covers is zeros, in an increment it is as in the parent.
//
// # Why the sums are as they are
//
// A sum covers all that came before it: its last is the checksum of the whole file, and a
// frame that was lost, repeated, moved or comes from another file is found as well as a
// flipped bit, at its place. It is sha256 because a target is somebody else's machine: who
// can write there must not be able to make another disk of a file and leave its last sum
// as it was. The CRC is there to tell a damaged frame head, whose lengths and ranges can't
// be believed, from damaged data, whose range can be named.
package backup
