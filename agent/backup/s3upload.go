package backup

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// s3Upload is an upload in parts.
type s3Upload struct {
	s     s3
	ctx   context.Context
	key   string
	id    string // of the upload; "" before the first part
	begun time.Time
	there map[int]minio.ObjectPart // what an interrupted one left, by number
	parts []minio.CompletePart     // of this one, in order
	buf   []byte
	bounded
}

func (u *s3Upload) State() State { return State{} }

func (u *s3Upload) Write(p []byte) (int, error) {
	if err := u.take(len(p)); err != nil {
		return 0, err
	}
	written := 0
	for len(p) > 0 {
		u.buf = slices.Grow(u.buf, int(partSize(len(u.parts)+1))-len(u.buf))
		n := min(len(p), int(partSize(len(u.parts)+1))-len(u.buf))
		u.buf = append(u.buf, p[:n]...)
		p, written = p[n:], written+n
		if int64(len(u.buf)) == partSize(len(u.parts)+1) {
			if err := u.send(); err != nil {
				return written, err
			}
		}
	}
	return written, nil
}

// send sends the part that was collected, unless it is there.
func (u *s3Upload) send() error {
	number := len(u.parts) + 1
	if number > maxParts {
		return fault.New(fault.Exhausted, "send part %d to bucket %s: stores take %d", number, u.s.bucket, maxParts)
	}
	digest := md5.Sum(u.buf) // the protocol's sum of a part, against mistakes only
	part, ok := u.there[number]
	if !ok || part.Size != int64(len(u.buf)) || strings.Trim(part.ETag, `"`) != hex.EncodeToString(digest[:]) {
		if u.id == "" {
			id, err := u.s.core.NewMultipartUpload(u.ctx, u.s.bucket, u.key, minio.PutObjectOptions{ContentType: "application/octet-stream"})
			if err != nil {
				return u.s.wrap("begin upload", err)
			}
			u.id = id
		}
		sent, err := u.put(number, digest)
		if err != nil {
			return err
		}
		part = sent
	}
	u.parts = append(u.parts, minio.CompletePart{PartNumber: number, ETag: part.ETag})
	u.buf = u.buf[:0]
	return nil
}

// partDelays are between tries of a part. What goes on for longer is for the manager, which
// lets others have their turn meanwhile.
var partDelays = [...]time.Duration{time.Second, 3 * time.Second}

// put sends a part, some times if need be. A connection that was given up may go on reading
// its part for a while, so each try has a reader of its own, and the buffer is not used again.
func (u *s3Upload) put(number int, digest [md5.Size]byte) (minio.ObjectPart, error) {
	whole := sha256.Sum256(u.buf) // signed along, so that the part need not be signed piece by piece
	options := minio.PutObjectPartOptions{Md5Base64: base64.StdEncoding.EncodeToString(digest[:]), Sha256Hex: hex.EncodeToString(whole[:]), DisableContentSha256: true}
	part := u.buf
	for try := 0; ; try++ {
		sent, err := u.s.core.PutObjectPart(u.ctx, u.s.bucket, u.key, u.id, number, bytes.NewReader(part), int64(len(part)), options)
		if err == nil {
			return sent, nil
		}
		u.buf = nil
		if err = u.s.wrap("send part", err); try == len(partDelays) || !fault.Is(err, fault.Unavailable) {
			return minio.ObjectPart{}, err
		}
		select {
		case <-u.ctx.Done():
			return minio.ObjectPart{}, err
		case <-time.After(partDelays[try]):
		}
	}
}

func (u *s3Upload) Commit() error {
	if len(u.buf) > 0 || len(u.parts) == 0 {
		if err := u.send(); err != nil {
			return err
		}
	}
	_, err := u.s.core.CompleteMultipartUpload(u.ctx, u.s.bucket, u.key, u.id, u.parts, minio.PutObjectOptions{})
	return u.s.wrap("complete upload", err)
}

func (u *s3Upload) Close() error { return nil }
