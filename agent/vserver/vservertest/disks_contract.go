package vservertest

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/vserver"
)

// Ids for the contract tests.
const (
	contractImage  = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	contractServer = "0b3f9d52-7a6c-4e0f-9a51-3f1d6c7e8a90"
	contractBase   = 64 << 20
)

var contractIDs = vserver.IDRange{First: 1<<20 + 7<<16, Size: 1 << 16}

// DisksContract holds what every vserver.Disks does, with the base disks it clones from.
// newPool returns a pool without disks and base disks, with room for 256 MiB.
func DisksContract(t *testing.T, newPool func(t *testing.T) (vserver.Disks, image.Bases)) {
	t.Run("a disk has any size that the image fits", func(t *testing.T) {
		d, b := newPool(t)
		contractSizes(t, d, b)
	})
	for name, test := range map[string]func(t *testing.T, d vserver.Disks){
		"a disk is a clone of its image":      contractClone,
		"calls may be made twice":             contractTwice,
		"growing is live and never shrinks":   contractGrow,
		"what is not there":                   contractMissing,
		"bad input is refused":                contractBadInput,
		"data outlives detaching":             contractDetach,
		"a disk does not depend on its image": nil, // below: it needs the base disks too
	} {
		t.Run(name, func(t *testing.T) {
			d, b := newPool(t)
			must(t, b.Build(t.Context(), contractImage, contractBase, func(root string) error {
				return os.WriteFile(filepath.Join(root, "hello"), []byte("from the image"), 0o644)
			}))
			if test != nil {
				test(t, d)
				return
			}
			must(t, d.Create(t.Context(), contractServer, contractImage, contractBase))
			must(t, b.Remove(t.Context(), contractImage))
			wantFile(t, attach(t, d).Root, "hello", "from the image")
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantKind(t *testing.T, err error, kind fault.Kind) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("error %v, want one of kind %v", err, kind)
	}
}

func wantFile(t *testing.T, root, name, text string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, name))
	must(t, err)
	if string(b) != text {
		t.Errorf("%s holds %q, want %q", name, b, text)
	}
}

// attach attaches the contract's server and has it removed when the test ends.
func attach(t *testing.T, d vserver.Disks) vserver.Attachment {
	t.Helper()
	at, err := d.Attach(t.Context(), contractServer, contractIDs)
	must(t, err)
	t.Cleanup(func() {
		if err := d.Remove(context.Background(), contractServer); err != nil {
			t.Error(err)
		}
	})
	return at
}

// only returns the one disk that there is.
func only(t *testing.T, d vserver.Disks) vserver.DiskInfo {
	t.Helper()
	all, err := d.List(t.Context())
	must(t, err)
	if len(all) != 1 || all[0].ID != contractServer {
		t.Fatalf("disks %+v, want one", all)
	}
	return all[0]
}

func contractClone(t *testing.T, d vserver.Disks) {
	must(t, d.Create(t.Context(), contractServer, contractImage, contractBase+8192))
	if i := only(t, d); i.Size != contractBase+8192 || i.Attached {
		t.Errorf("disk %+v, want detached with %d bytes", i, contractBase+8192)
	}
	at := attach(t, d)
	if at.Root == "" || at.Rootfs == "" || at.Major != 7 {
		t.Errorf("attachment %+v is not complete", at)
	}
	wantFile(t, at.Root, "hello", "from the image")
	wantFile(t, at.Rootfs, "hello", "from the image")
	if i := only(t, d); !i.Attached || i.Attachment != at {
		t.Errorf("disk %+v, want attached as %+v", i, at)
	}
}

// contractSizes makes disks smaller than the base disk, as large, and larger.
func contractSizes(t *testing.T, d vserver.Disks, b image.Bases) {
	ctx := t.Context()
	const base = 3 * contractBase
	must(t, b.Build(ctx, contractImage, base, func(root string) error {
		return os.WriteFile(filepath.Join(root, "hello"), []byte("from the image"), 0o644)
	}))
	all, err := b.List(ctx)
	must(t, err)
	if len(all) != 1 || all[0].Size <= 0 || all[0].Size >= base {
		t.Fatalf("base disks %+v, want one whose clones can be smaller than %d bytes", all, base)
	}
	least := all[0].Size
	wantKind(t, d.Create(ctx, contractServer, contractImage, least-1), fault.Invalid)
	for _, size := range []int64{least, least + 4096, base - 4096, base, base + 1<<20, 4 * contractBase} {
		for range 2 { // the second finds it made ready
			must(t, d.Create(ctx, contractServer, contractImage, size))
			at, err := d.Attach(ctx, contractServer, contractIDs)
			must(t, err)
			wantFile(t, at.Rootfs, "hello", "from the image")
			must(t, os.WriteFile(filepath.Join(at.Root, "hello"), []byte("changed"), 0o644))
			if i := only(t, d); i.Size != size {
				t.Errorf("size %d, want %d", i.Size, size)
			}
			must(t, d.Remove(ctx, contractServer))
		}
	}
	if all, err := b.List(ctx); err != nil || len(all) != 1 || all[0].Size != least {
		t.Errorf("base disks %+v (%v), want the one", all, err)
	}
	must(t, d.Create(ctx, contractServer, contractImage, least))
	must(t, d.Grow(ctx, contractServer, least+contractBase))
	wantFile(t, attach(t, d).Root, "hello", "from the image")
	must(t, b.Remove(ctx, contractImage))
	wantKind(t, d.Create(ctx, "7a6c9d52-0b3f-4e0f-9a51-3f1d6c7e8a90", contractImage, least), fault.NotFound)
}

func contractTwice(t *testing.T, d vserver.Disks) {
	ctx := t.Context()
	must(t, d.Create(ctx, contractServer, contractImage, contractBase))
	at := attach(t, d)
	must(t, os.WriteFile(filepath.Join(at.Root, "mine"), []byte("kept"), 0o644))
	must(t, d.Create(ctx, contractServer, contractImage, contractBase))
	if again := attach(t, d); again != at {
		t.Errorf("second attachment %+v, first %+v", again, at)
	}
	wantFile(t, at.Root, "mine", "kept")
	for range 2 {
		must(t, d.Detach(ctx, contractServer))
	}
	must(t, d.Create(ctx, contractServer, contractImage, 2*contractBase))
	if i := only(t, d); i.Size != 2*contractBase {
		t.Errorf("size %d after Create with a larger one, want %d", i.Size, 2*contractBase)
	}
	for range 2 {
		must(t, d.Remove(ctx, contractServer))
	}
	if all, err := d.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("disks %+v (%v) after Remove, want none", all, err)
	}
}

func contractGrow(t *testing.T, d vserver.Disks) {
	ctx := t.Context()
	must(t, d.Create(ctx, contractServer, contractImage, contractBase))
	at := attach(t, d)
	data := bytes.Repeat([]byte("data"), 1<<18)
	must(t, os.WriteFile(filepath.Join(at.Root, "big"), data, 0o644))
	if err := d.Grow(ctx, contractServer, 2*contractBase); fault.Is(err, fault.Precondition) {
		if i := only(t, d); i.Size != contractBase {
			t.Errorf("size %d after a refusal, want %d", i.Size, contractBase)
		}
		must(t, d.Detach(ctx, contractServer)) // the agent may not grow it live
		must(t, d.Grow(ctx, contractServer, 2*contractBase))
		at = attach(t, d)
	} else {
		must(t, err)
	}
	must(t, d.Grow(ctx, contractServer, 2*contractBase))
	wantKind(t, d.Grow(ctx, contractServer, contractBase), fault.Invalid)
	if i := only(t, d); i.Size != 2*contractBase || i.Attachment != at {
		t.Errorf("disk %+v, want %d bytes, attached as before", i, 2*contractBase)
	}
	must(t, d.Detach(ctx, contractServer))
	must(t, d.Grow(ctx, contractServer, 3*contractBase))
	wantFile(t, attach(t, d).Root, "big", string(data))
	if i := only(t, d); i.Size != 3*contractBase {
		t.Errorf("size %d, want %d", i.Size, 3*contractBase)
	}
}

func contractMissing(t *testing.T, d vserver.Disks) {
	ctx := t.Context()
	const other = "sha256:ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff"
	wantKind(t, d.Create(ctx, contractServer, other, contractBase), fault.NotFound)
	_, err := d.Attach(ctx, contractServer, contractIDs)
	wantKind(t, err, fault.NotFound)
	wantKind(t, d.Grow(ctx, contractServer, contractBase), fault.NotFound)
	must(t, d.Detach(ctx, contractServer))
	must(t, d.Remove(ctx, contractServer))
	if all, err := d.List(ctx); err != nil || len(all) != 0 {
		t.Errorf("disks %+v (%v), want none", all, err)
	}
}

func contractBadInput(t *testing.T, d vserver.Disks) {
	ctx := t.Context()
	wantKind(t, d.Create(ctx, contractServer, contractImage, contractBase-1), fault.Invalid)
	for _, id := range []string{"", "..", "../../etc/passwd", strings.ToUpper(contractServer), contractServer + "/.."} {
		wantKind(t, d.Create(ctx, id, contractImage, contractBase), fault.Invalid)
		wantKind(t, d.Remove(ctx, id), fault.Invalid)
		wantKind(t, d.Detach(ctx, id), fault.Invalid)
		_, err := d.Attach(ctx, id, contractIDs)
		wantKind(t, err, fault.Invalid)
	}
	must(t, d.Create(ctx, contractServer, contractImage, contractBase))
	for _, ids := range []vserver.IDRange{{}, {First: 0, Size: 65536}, {First: 1 << 31, Size: 1 << 31}} {
		_, err := d.Attach(ctx, contractServer, ids)
		wantKind(t, err, fault.Invalid)
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := d.Grow(canceled, contractServer, 2*contractBase); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v after cancel, want context.Canceled", err)
	}
	must(t, d.Remove(ctx, contractServer))
}

func contractDetach(t *testing.T, d vserver.Disks) {
	ctx := t.Context()
	must(t, d.Create(ctx, contractServer, contractImage, contractBase))
	at := attach(t, d)
	must(t, os.WriteFile(filepath.Join(at.Root, "mine"), []byte("kept"), 0o644))
	must(t, d.Detach(ctx, contractServer))
	if i := only(t, d); i.Attached {
		t.Errorf("disk %+v, want detached", i)
	}
	wantFile(t, attach(t, d).Root, "mine", "kept")
}

// BasesContract holds what every image.Bases does. newBases returns one without base
// disks, with room for 256 MiB.
func BasesContract(t *testing.T, newBases func(t *testing.T) image.Bases) {
	list := func(t *testing.T, b image.Bases) []image.Base {
		t.Helper()
		all, err := b.List(t.Context())
		must(t, err)
		return all
	}
	t.Run("build, list, remove", func(t *testing.T) {
		b, ctx := newBases(t), t.Context()
		must(t, b.Build(ctx, contractImage, contractBase, func(root string) error {
			return os.WriteFile(filepath.Join(root, "hello"), nil, 0o644)
		}))
		must(t, b.Build(ctx, contractImage, contractBase, func(string) error {
			t.Error("an existing base disk is filled again")
			return nil
		}))
		if all := list(t, b); len(all) != 1 || all[0].ID != contractImage || !all[0].Complete || all[0].Size != contractBase {
			t.Errorf("base disks %+v", all)
		}
		for range 2 {
			must(t, b.Remove(ctx, contractImage))
		}
		if all := list(t, b); len(all) != 0 {
			t.Errorf("base disks %+v after Remove, want none", all)
		}
	})
	t.Run("its size is what the content needs", func(t *testing.T) {
		b := newBases(t)
		const content = contractBase + 6<<20
		must(t, b.Build(t.Context(), contractImage, 4*contractBase, func(root string) error {
			return os.WriteFile(filepath.Join(root, "large"), bytes.Repeat([]byte{1}, content), 0o644)
		}))
		if all := list(t, b); len(all) != 1 || all[0].Size <= content || all[0].Size >= 4*contractBase {
			t.Errorf("base disks %+v, want a size from %d and less than %d", all, content, 4*contractBase)
		}
	})
	t.Run("a failed build leaves nothing", func(t *testing.T) {
		b, broken := newBases(t), errors.New("broken archive")
		err := b.Build(t.Context(), contractImage, contractBase, func(root string) error {
			must(t, os.WriteFile(filepath.Join(root, "half"), nil, 0o644))
			return broken
		})
		if !errors.Is(err, broken) {
			t.Errorf("error %v, want what fill returned", err)
		}
		if all := list(t, b); len(all) != 0 {
			t.Errorf("base disks %+v, want none", all)
		}
	})
	t.Run("bad input is refused", func(t *testing.T) {
		b := newBases(t)
		for _, id := range []string{"", "sha256:", "sha256:../../x", "md5:" + contractImage[7:], strings.ToUpper(contractImage)} {
			wantKind(t, b.Build(t.Context(), id, contractBase, func(string) error { return nil }), fault.Invalid)
			wantKind(t, b.Remove(t.Context(), id), fault.Invalid)
		}
	})
	t.Run("the root directory starts empty", func(t *testing.T) {
		must(t, newBases(t).Build(t.Context(), contractImage, contractBase, func(root string) error {
			entries, err := os.ReadDir(root)
			if len(entries) > 0 {
				t.Errorf("root holds %v", entries)
			}
			return err
		}))
	})
}
