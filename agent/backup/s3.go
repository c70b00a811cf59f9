package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// S3 is a store that speaks S3, as a host's configuration has it.
type S3 struct {
	Bucket    string // "" is the store of all buckets that no other one has
	Endpoint  string // URL: "https://s3.example.com"
	Region    string // "" means us-east-1
	AccessKey string
	SecretKey string
	PathStyle bool // the bucket is in the path of URLs, not in the host's name
	// Transport reaches the store; nil means one with the system's certificates and proxies.
	Transport http.RoundTripper
}

// String has no credentials.
func (s S3) String() string { return fmt.Sprintf("s3 bucket %q at %s", s.Bucket, s.Endpoint) }

// GoString has none either.
func (s S3) GoString() string { return s.String() }

func (s S3) validate() error {
	u, err := url.Parse(s.Endpoint)
	switch {
	case err != nil, u.Scheme != "https" && u.Scheme != "http", u.Host == "", strings.Trim(u.Path, "/") != "", u.User != nil, u.RawQuery != "":
		return fault.Field("backup.s3.endpoint", "endpoint of bucket %q: want a URL such as \"https://s3.example.com\", without path or user", s.Bucket)
	case s.Bucket != "" && !bucketPattern.MatchString(s.Bucket):
		return fault.Field("backup.s3.bucket", "bucket %q: want a bucket's name", s.Bucket)
	case s.AccessKey == "" || s.SecretKey == "":
		return fault.Field("backup.s3.access_key", "bucket %q: access key and secret key are needed", s.Bucket)
	}
	return nil
}

// tries is how often the client sends a request by itself: once. It would send again from
// the reader that the connection it gave up may still be reading from; see s3Upload.send.
const tries = 1

type s3 struct {
	core   minio.Core
	bucket string
	prefix string
}

func newS3(c S3, l Location) (Target, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil {
		return nil, c.validate()
	}
	lookup := minio.BucketLookupDNS
	if c.PathStyle {
		lookup = minio.BucketLookupPath
	}
	region := c.Region
	if region == "" {
		region = "us-east-1"
	}
	core, err := minio.NewCore(u.Host, &minio.Options{
		Creds: credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""), Secure: u.Scheme == "https",
		Region: region, BucketLookup: lookup, MaxRetries: tries, Transport: c.Transport,
	})
	if err != nil {
		return nil, fault.New(fault.Invalid, "open %s: %w", c, err)
	}
	return s3{core: *core, bucket: l.Bucket, prefix: l.Prefix}, nil
}

func (s s3) key(name string) string { return path.Join(s.prefix, name) }

// wrap gives a store's error its kind. Only its code and message are passed on: requests
// carry signatures.
func (s s3) wrap(verb string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s in bucket %s: %w", verb, s.bucket, err)
	}
	var r minio.ErrorResponse
	if !errors.As(err, &r) {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return fault.New(fault.Unavailable, "%s in bucket %s: %w", verb, s.bucket, err)
	}
	return fault.New(s3Kind(r), "%s in bucket %s: the store says %s: %s", verb, s.bucket, r.Code, r.Message)
}

func s3Kind(r minio.ErrorResponse) fault.Kind {
	switch r.Code {
	case minio.NoSuchKey, minio.NoSuchUpload:
		return fault.NotFound
	case minio.NoSuchBucket, minio.AccessDenied, "InvalidAccessKeyId", "SignatureDoesNotMatch", "AllAccessDisabled":
		return fault.Precondition // of the host's configuration
	case minio.PreconditionFailed, "ConditionalRequestConflict":
		return fault.Aborted
	case "BadDigest", "XAmzContentSHA256Mismatch", "IncompleteBody", "RequestTimeout", "SlowDown": // came otherwise than it was sent, or too slowly
		return fault.Unavailable
	case "XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "EntityTooLarge":
		return fault.Exhausted
	}
	switch {
	case r.StatusCode == http.StatusInsufficientStorage:
		return fault.Exhausted
	case r.StatusCode == http.StatusPreconditionFailed:
		return fault.Aborted
	case r.StatusCode == http.StatusNotFound:
		return fault.NotFound
	case r.StatusCode >= 500, r.StatusCode == http.StatusTooManyRequests, r.StatusCode == http.StatusRequestTimeout:
		return fault.Unavailable
	}
	return fault.Internal
}

// Parts of an upload are kept in memory until they are whole. Stores take 10,000 at most, of
// 5 MiB at least: parts begin small and become larger, so that memory is needed only for
// disks that are large. Ten thousand of them are 8 TiB. A part's size depends on its number
// alone: an interrupted upload must cut the same bytes the same way.
const (
	firstPart   = 8 << 20
	partsOfSize = 1000
	maxParts    = 10_000
)

func partSize(number int) int64 { return firstPart << ((number - 1) / partsOfSize) }

// Append opens an upload in parts. A store can't read back what was not completed, but it
// tells the sums of its parts. A file is written the same way each time, so the writer
// begins at its beginning, and parts that are there are not sent again. A store whose
// tags are not sums (one that encrypts) gets them again.
func (s s3) Append(ctx context.Context, f Ref, most int64) (Upload, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	key := s.key(f.path())
	_, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{})
	if err == nil {
		return nil, fault.New(fault.Exists, "write backup %s: it is complete", f.Backup)
	}
	if err = s.wrap("look for backup file", err); !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	u := &s3Upload{s: s, ctx: ctx, key: key, bounded: bounded{most}}
	uploads, err := s.uploads(ctx, key)
	if err != nil {
		return nil, err
	}
	for _, up := range uploads {
		if up.Key == key && (u.id == "" || up.Initiated.After(u.begun)) {
			u.id, u.begun = up.UploadID, up.Initiated
		}
	}
	if u.id != "" {
		u.there, err = s.parts(ctx, key, u.id)
	}
	return u, err
}

// uploads are those that were begun under a prefix and not completed.
func (s s3) uploads(ctx context.Context, prefix string) ([]minio.ObjectMultipartInfo, error) {
	var all []minio.ObjectMultipartInfo
	for key, id := "", ""; ; {
		page, err := s.core.ListMultipartUploads(ctx, s.bucket, prefix, key, id, "", 1000)
		if err = s.wrap("list uploads", err); fault.Is(err, fault.NotFound) {
			return all, nil // so do some stores say that there is none
		} else if err != nil {
			return nil, err
		}
		if all = append(all, page.Uploads...); len(all) > maxFiles {
			return nil, fault.New(fault.Exhausted, "list uploads in bucket %s: there are more than %d", s.bucket, maxFiles)
		}
		if !page.IsTruncated || page.NextKeyMarker == key && page.NextUploadIDMarker == id {
			return all, nil
		}
		key, id = page.NextKeyMarker, page.NextUploadIDMarker
	}
}

// parts are those that an upload has, by number.
func (s s3) parts(ctx context.Context, key, id string) (map[int]minio.ObjectPart, error) {
	all := map[int]minio.ObjectPart{}
	for marker := 0; ; {
		page, err := s.core.ListObjectParts(ctx, s.bucket, key, id, marker, 1000)
		if err != nil {
			return nil, s.wrap("list parts", err)
		}
		for _, p := range page.ObjectParts {
			all[p.PartNumber] = p
		}
		if !page.IsTruncated || page.NextPartNumberMarker <= marker {
			return all, nil
		}
		marker = page.NextPartNumberMarker
	}
}

func (s s3) Open(ctx context.Context, f Ref, offset int64) (io.ReadCloser, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	var o minio.GetObjectOptions
	if offset > 0 {
		if err := o.SetRange(offset, 0); err != nil {
			return nil, fault.New(fault.Invalid, "open backup file at byte %d: %w", offset, err)
		}
	}
	body, _, _, err := s.core.GetObject(ctx, s.bucket, s.key(f.path()), o)
	if err != nil {
		var r minio.ErrorResponse
		if errors.As(err, &r) && r.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			return io.NopCloser(bytes.NewReader(nil)), nil // at its end
		}
		return nil, s.wrap("open backup file", err)
	}
	return s3Body{s, body}, nil
}

// s3Body gives errors on the way their kind.
type s3Body struct {
	s s3
	io.ReadCloser
}

func (b s3Body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = b.s.wrap("read backup file", err)
	}
	return n, err
}

func (s s3) List(ctx context.Context, server string) ([]File, error) {
	prefix := s.prefix
	if server != "" {
		prefix = s.key(server)
	}
	if prefix != "" {
		prefix += "/"
	}
	var all []File
	add := func(key string, size int64, complete bool) {
		name := strings.TrimPrefix(strings.TrimPrefix(key, s.prefix), "/")
		folder, base := path.Split(name)
		if f, ok := fileOf(strings.TrimSuffix(folder, "/"), base); ok && f.Complete {
			f.Size, f.Complete = size, complete
			all = append(all, f)
		}
	}
	for o := range s.core.Client.ListObjects(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, s.wrap("list backups", o.Err)
		}
		if add(o.Key, o.Size, true); len(all) > maxFiles {
			return nil, fault.New(fault.Exhausted, "list backups in bucket %s: there are more than %d", s.bucket, maxFiles)
		}
	}
	uploads, err := s.uploads(ctx, prefix)
	for _, u := range uploads {
		add(u.Key, u.Size, false)
	}
	return all, err
}

func (s s3) Delete(ctx context.Context, f Ref) error {
	if err := f.check(); err != nil {
		return err
	}
	key := s.key(f.path())
	uploads, err := s.uploads(ctx, key)
	if err != nil {
		return err
	}
	for _, u := range uploads {
		if u.Key != key {
			continue
		}
		err := s.wrap("abort upload", s.core.AbortMultipartUpload(ctx, s.bucket, key, u.UploadID))
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	err = s.wrap("delete backup file", s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{}))
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func (s s3) Load(ctx context.Context, server string) ([]byte, error) {
	note, _, err := s.note(ctx, server)
	return note, err
}

func (s s3) note(ctx context.Context, server string) (note []byte, tag string, err error) {
	name, err := notePath(server)
	if err != nil {
		return nil, "", err
	}
	body, info, _, err := s.core.GetObject(ctx, s.bucket, s.key(name), minio.GetObjectOptions{})
	if err != nil {
		return nil, "", s.wrap("read note", err)
	}
	defer body.Close()
	if note, err = io.ReadAll(io.LimitReader(body, maxNote+1)); err != nil {
		return nil, "", s.wrap("read note", err)
	}
	if len(note) > maxNote {
		return nil, "", fault.New(fault.Invalid, "read note in bucket %s: it has more than %d bytes", s.bucket, maxNote)
	}
	return note, info.ETag, nil
}

func (s s3) Swap(ctx context.Context, server string, old, note []byte) error {
	name, err := notePath(server)
	if err != nil {
		return err
	}
	is, tag, err := s.note(ctx, server)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	var o minio.PutObjectOptions
	switch {
	case err != nil && old == nil:
		o.SetMatchETagExcept("*")
	case err == nil && old != nil && bytes.Equal(is, old):
		o.SetMatchETag(tag)
	default:
		return fault.New(fault.Aborted, "write note in bucket %s: that of server %s changed meanwhile", s.bucket, server)
	}
	_, err = s.core.Client.PutObject(ctx, s.bucket, s.key(name), bytes.NewReader(note), int64(len(note)), o)
	return s.wrap("write note", err)
}
