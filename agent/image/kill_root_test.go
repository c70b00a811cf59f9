//go:build linux && root

package image_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/reflejo/terraform-provider-reflejo/agent/image"
	"github.com/reflejo/terraform-provider-reflejo/agent/store"
)

const childDir = "REFLEJO_TEST_IMAGE_DIR"

// TestMain is also the agent that TestKilledImport kills.
func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if err := importInChild(dir); err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	fmt.Println("step: done")
	select {}
}

// agentIn is an image manager over a real pool and a real store in dir.
func agentIn(dir string) (m *image.Manager, bases image.Bases, closeAll func() error, err error) {
	db, err := store.Open(filepath.Join(dir, "state.db"))
	if err != nil {
		return nil, nil, nil, err
	}
	p, err := openPool(dir)
	if err != nil {
		return nil, nil, nil, errors.Join(err, db.Close())
	}
	closeAll = func() error { return errors.Join(p.Close(), db.Close()) }
	m, err = image.NewManager(image.Config{
		Bases: p.Bases(), Store: db.Bucket("images"), Dirs: []string{dir}, TempDir: filepath.Join(dir, "tmp"), InUse: func(string) int { return 0 },
	})
	return m, p.Bases(), closeAll, err
}

func importInChild(dir string) error {
	m, _, _, err := agentIn(dir)
	if err != nil {
		return err
	}
	if err := m.Recover(context.Background()); err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(dir, "x.tar"))
	if err != nil {
		return err
	}
	_, err = m.Upload(context.Background(), "x", "x.tar", "", 0, f, func(step string, _, _ int64) { fmt.Println("step:", step) })
	return err
}

// TestKilledImport kills an agent by SIGKILL at each step it reports: after the next start the image is
// there whole, or nothing of it is, and importing works.
func TestKilledImport(t *testing.T) {
	for _, step := range []string{"unpacking", "syncing", "done"} {
		t.Run(step, func(t *testing.T) {
			dir := poolDir(t)
			if err := os.WriteFile(filepath.Join(dir, "x.tar"), xs(t, 60), 0o644); err != nil {
				t.Fatal(err)
			}
			runUntil(t, dir, step)
			if left, err := os.ReadDir(filepath.Join(dir, "tmp")); err != nil || len(left) != 0 {
				t.Errorf("temporary files with names: %v, %v", left, err)
			}
			m, bases, closeAll, err := agentIn(dir)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { closeAll() })
			if err := m.Recover(t.Context()); err != nil {
				t.Fatal(err)
			}
			have, err := bases.List(t.Context())
			if err != nil || len(have) != len(m.List()) || len(have) == 1 && !have[0].Complete || step == "done" && len(have) != 1 {
				t.Errorf("base disks %+v, images %+v, %v", have, m.List(), err)
			}
			if builds := mountsBelow(t, filepath.Join(dir, "run")); len(builds) != 0 {
				t.Errorf("mounts of builds: %v", builds)
			}
			f, err := os.Open(filepath.Join(dir, "x.tar"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := m.Upload(t.Context(), "x", "x.tar", "", 0, f, nil); err != nil {
				t.Errorf("import after the kill: %v", err)
			}
			if err := m.Delete(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		})
	}
}

// runUntil runs the agent until it reports the step, and kills it there.
func runUntil(t *testing.T, dir, step string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), exe)
	c.Env = append(os.Environ(), childDir+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	var said []string
	for s := bufio.NewScanner(out); s.Scan(); {
		said = append(said, s.Text())
		if s.Text() == "step: "+step {
			return
		}
	}
	t.Fatalf("it never came to %q: %s", step, strings.Join(said, ", "))
}
