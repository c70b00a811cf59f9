package backup_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/reflejo/terraform-provider-reflejo/agent/backup"
	"github.com/reflejo/terraform-provider-reflejo/agent/backup/backuptest"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

func open(t *testing.T, targets backup.Targets, name string) backup.Target {
	t.Helper()
	if err := targets.Validate(); err != nil {
		t.Fatal(err)
	}
	target, err := targets.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestContractDir(t *testing.T) {
	base := t.TempDir()
	for _, path := range []string{base, base + "/team/one"} {
		backuptest.Target(t, func() backup.Target { return open(t, backup.Targets{Dirs: []string{"/nowhere", base}}, "dir:"+path) })
	}
}

func TestContractS3(t *testing.T) {
	s := backup.NewS3Store(t)
	for _, name := range []string{"s3://bucket", "s3://bucket/some/prefix"} {
		backuptest.Target(t, func() backup.Target { return open(t, s.Targets(), name) })
	}
}

func TestParseTarget(t *testing.T) {
	for text, want := range map[string]backup.Location{
		"dir:/srv/backups":     {Scheme: "dir", Path: "/srv/backups"},
		"s3://bucket":          {Scheme: "s3", Bucket: "bucket"},
		"s3://my.bucket-1/a/b": {Scheme: "s3", Bucket: "my.bucket-1", Prefix: "a/b"},
		"host:beta":            {Scheme: "host", Host: "beta"},
	} {
		if got, err := backup.ParseTarget(text); err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v (%s), %v", text, got, got, err)
		}
	}
	for _, text := range []string{"", "dir", "dir:", "dir:srv", "dir:/srv/../etc", "dir:/srv//x", "dir:/srv/", "dir:/a\x00b", "s3:bucket", "s3://", "s3://B",
		"s3://bucket//x", "s3://bucket/../x", "s3://bucket/a?b", "s3://user@bucket", "s3://a..b", "host:", "host:a/b", "host:UP", "ftp://x", "file:///x", "dir:/" + strings.Repeat("a", 2000)} {
		if _, err := backup.ParseTarget(text); !fault.Is(err, fault.Invalid) || fault.FieldOf(err) != "target" {
			t.Errorf("%q: %v, want Invalid blaming target", text, err)
		}
	}
}

func TestTargetsAllow(t *testing.T) {
	ctx, base := t.Context(), t.TempDir()
	targets := backup.Targets{Dirs: []string{base}}
	for _, name := range []string{"dir:/etc", "dir:" + base + "x", "dir:" + filepath.Dir(base), "s3://bucket/x", "host:beta"} {
		if _, err := targets.Open(ctx, name); !fault.Is(err, fault.Precondition) || fault.FieldOf(err) != "target" {
			t.Errorf("%s: %v, want Precondition", name, err)
		}
	}
	for _, bad := range []backup.Targets{
		{Dirs: []string{"relative"}},
		{S3: []backup.S3{{Endpoint: "nonsense", AccessKey: "a", SecretKey: "b"}}},
		{S3: []backup.S3{{Endpoint: "https://user:pw@x", AccessKey: "a", SecretKey: "b"}}},
		{S3: []backup.S3{{Endpoint: "https://x"}}},
		{S3: []backup.S3{{Endpoint: "https://x", AccessKey: "a", SecretKey: "b"}, {Endpoint: "https://y", AccessKey: "a", SecretKey: "b"}}},
	} {
		if err := bad.Validate(); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: %v, want Invalid", bad, err)
		}
	}
}

func TestDirNeedsItsBase(t *testing.T) {
	target := backup.NewDir(filepath.Join(t.TempDir(), "not-mounted"), ".")
	if _, err := target.List(t.Context(), ""); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a directory that is not there: %v, want Unavailable", err)
	}
}

func TestDirIsPrivateAndLeadsNowhere(t *testing.T) {
	base, outside := t.TempDir(), t.TempDir()
	target := backup.NewDir(base, "sub")
	server := uuid.NewString()
	if err := os.Mkdir(filepath.Join(base, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(base, "sub", server)); err != nil {
		t.Fatal(err)
	}
	if _, err := target.Append(t.Context(), backup.Ref{Server: server, Backup: uuid.NewString()}, 1); err == nil {
		t.Error("wrote through a link that leads out of the directory")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("outside: %v, %v", left, err)
	}
	if err := backup.PutClaim(t.Context(), target, backup.Claim{Server: server, Host: "alpha", Generation: 1}); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(filepath.Join(base, "sub", "claims"), func(path string, d os.DirEntry, err error) error {
		info, ierr := d.Info()
		if err == nil && ierr == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Of an interrupted upload only what is missing is sent.
func TestS3SendsNoPartTwice(t *testing.T) {
	s := backup.NewS3Store(t)
	target := open(t, s.Targets(), "s3://bucket/p")
	m := backuptest.Manifest(uuid.NewString(), 20)
	send := func(upTo int64, commit bool) int {
		before := s.Parts()
		up, err := target.Append(t.Context(), backup.Ref{Server: m.Snapshot.Server, Backup: m.ID}, backup.MostBytes(m.Snapshot.Size))
		if err != nil {
			t.Fatal(err)
		}
		w, err := backup.NewWriter(up, m, up.State())
		for i := int64(0); err == nil && i < upTo; i++ {
			err = w.Data(i<<20, backuptest.Chunk(i))
		}
		if err == nil && commit {
			if _, err = w.Close(); err == nil {
				err = up.Commit()
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return s.Parts() - before
	}
	if first, second := send(17, false), send(20, true); first != 2 || second != 1 {
		t.Errorf("%d parts sent before the interruption and %d after, want 2 and 1", first, second)
	}
}

func TestS3Errors(t *testing.T) {
	s := backup.NewS3Store(t)
	target := open(t, s.Targets(), "s3://bucket")
	answer := func(status int, code string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
		}
	}
	for code, c := range map[string]struct {
		status int
		kind   fault.Kind
	}{
		"AccessDenied":          {403, fault.Precondition},
		"SignatureDoesNotMatch": {403, fault.Precondition},
		"NoSuchBucket":          {404, fault.Precondition},
		"XMinioStorageFull":     {507, fault.Exhausted},
	} {
		s.Fail(answer(c.status, code))
		_, err := target.List(t.Context(), "")
		if !fault.Is(err, c.kind) || strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "AKEY") {
			t.Errorf("%s: %v, want %s without credentials", code, err, c.kind)
		}
	}
	away := backup.Targets{S3: []backup.S3{{Endpoint: "http://127.0.0.1:1", AccessKey: "AKEY", SecretKey: "SECRET", PathStyle: true}}}
	if _, err := open(t, away, "s3://bucket").Load(t.Context(), uuid.NewString()); !fault.Is(err, fault.Unavailable) || strings.Contains(err.Error(), "SECRET") || strings.Contains(err.Error(), "AKEY") {
		t.Errorf("a store that is away: %v, want Unavailable", err)
	}
	if text := fmt.Sprintf("%v %+v %#v", away.S3[0], away.S3, away.S3[0]); bytes.Contains([]byte(text), []byte("SECRET")) {
		t.Errorf("printed with its secret: %s", text)
	}
}
