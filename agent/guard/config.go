package guard

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// The arguments with which a program is to call Run, and RunInside.
const (
	Command     = "guard"
	commandStub = "guard-stub"
	commandInit = "guard-init"
)

// The files that the program in the server is given.
const (
	fileBinary  = 3
	fileControl = 4
	// Files is how many that are, from descriptor 3 on: what Config.Enter has to pass.
	Files = 2
)

// Inside is the command line that Config.Enter has to run in the server, as its root, with
// all capabilities of its own.
func Inside() []string { return []string{fmt.Sprintf("/proc/self/fd/%d", fileBinary), commandStub} }

// Config is what a guard keeps.
type Config struct {
	ID      string   `json:"id"`
	Enter   []string `json:"enter"` // runs Inside in the server with Files descriptors, detached, and ends
	Program Program  `json:"program"`
	Groups  []string `json:"groups"`   // directories of control groups that the guard itself joins
	LogFile string   `json:"log_file"` // what the program prints; at most twice MaxLog are kept
}

// Program is a command line in the server.
type Program struct {
	Argv   []string `json:"argv"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups"` // supplementary ids
}

const (
	configName = "guard.json"
	maxConfig  = 1 << 20
	maxIDLen   = 64

	// MaxLog is how long a log file becomes before it is moved to ".1", bytes.
	MaxLog = 4 << 20
)

// Validate refuses what can't be kept.
func (c Config) Validate() error {
	switch {
	case c.ID == "" || len(c.ID) > maxIDLen || strings.ContainsAny(c.ID, "/\x00"):
		return fault.New(fault.Invalid, "check guard: %q is no id", c.ID)
	case len(c.Enter) == 0 || len(c.Program.Argv) == 0:
		return fault.New(fault.Invalid, "check guard %s: nothing to run", c.ID)
	case c.Program.UID == 0:
		return fault.New(fault.Invalid, "check guard %s: postgres does not run as root", c.ID)
	case !filepath.IsAbs(c.LogFile):
		return fault.New(fault.Invalid, "check guard %s: log file %q is not absolute", c.ID, c.LogFile)
	}
	return nil
}

// save makes c what the next start runs.
func (c Config) save(dir string) error {
	if err := c.Validate(); err != nil {
		return err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode configuration of guard %s: %w", c.ID, err)
	}
	name := filepath.Join(dir, configName)
	if err := os.WriteFile(name+".new", b, 0o600); err != nil {
		return fmt.Errorf("write configuration of guard %s: %w", c.ID, err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("write configuration of guard %s: %w", c.ID, err)
	}
	return nil
}

func load(dir string) (Config, error) {
	var c Config
	b, err := os.ReadFile(filepath.Join(dir, configName))
	if err != nil {
		return c, fmt.Errorf("read configuration of guard: %w", err)
	}
	if len(b) > maxConfig {
		return c, errors.New("read configuration of guard: it is too long")
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read configuration of guard: %w", err)
	}
	return c, c.Validate()
}

// How a database that ends by itself is started again.
const (
	firstPause = 200 * time.Millisecond
	lastPause  = 30 * time.Second
	steady     = time.Minute // what ran this long has not failed
)

// pause is how long to wait after so many failures in a row.
func pause(failures int) time.Duration {
	if failures <= 0 {
		return 0
	}
	d := firstPause
	for range failures - 1 {
		if d *= 2; d >= lastPause {
			return lastPause
		}
	}
	return d
}

// failuresAfter counts a run that ended by itself.
func failuresAfter(before int, ran time.Duration) int {
	if ran >= steady {
		return 1
	}
	return before + 1
}
