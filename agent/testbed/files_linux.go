package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

// Where the provider built for the bed is found by `terraform init`.
const (
	providerSource  = "registry.terraform.io/reflejo/reflejo"
	providerVersion = "0.1.0"
	providerProgram = "terraform-provider-reflejo"
)

// certificateLife is short: a bed is for days, not years.
const certificateLife = 90 * 24 * time.Hour

// Open finds the bed that Up made in a directory.
func Open(dir string) (*Bed, error) {
	text, err := os.ReadFile(filepath.Join(dir, "testbed.json"))
	if err != nil {
		return nil, fmt.Errorf("open testbed: %w (make testbed makes one)", err)
	}
	var c Config
	if err := json.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("open testbed %s: %w", dir, err)
	}
	return New(c)
}

// makeFiles writes the bed's description, certificates, configurations and commands.
func (b *Bed) makeFiles() error {
	text, err := json.MarshalIndent(b.n.Config, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(b.n.path("testbed.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	if err := b.makeCertificates(); err != nil {
		return err
	}
	images, err := imageDir()
	if err != nil {
		return err
	}
	for _, dir := range []string{"images", "backups"} { // both are the same on all hosts
		if err := os.MkdirAll(b.n.path(dir), 0o755); err != nil {
			return err
		}
	}
	for _, name := range b.n.hosts() {
		h := &Host{b, name}
		if err := os.MkdirAll(h.Dir(), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(h.configFile(), []byte(b.n.agentConfig(name, images)), 0o644); err != nil {
			return err
		}
	}
	return errors.Join(b.makeMirror(), b.makeCommands())
}

// makeCertificates makes the authority, and a certificate for every agent and the operator
// where there is none.
func (b *Bed) makeCertificates() error {
	dir := b.n.path("pki")
	ca, err := pki.LoadCA(dir)
	if errors.Is(err, os.ErrNotExist) {
		if ca, err = pki.NewCA("reflejo testbed", certificateLife); err == nil {
			err = ca.Save(dir)
		}
	}
	if err != nil {
		return err
	}
	for _, place := range b.n.places() {
		id, options := pki.Identity{Role: pki.RoleAgent, Name: place}, pki.Options{Life: certificateLife}
		if place == Operator {
			id.Role = pki.RoleOperator
		} else {
			options.Addresses = []string{Address(place).String()}
		}
		cert, key := filepath.Join(dir, place+".crt"), filepath.Join(dir, place+".key")
		if _, err := pki.LoadPair(cert, key); err == nil {
			continue
		}
		pair, err := ca.Issue(id, options)
		if err != nil {
			return err
		}
		if err := pair.Save(cert, key); err != nil {
			return err
		}
	}
	return nil
}

// makeMirror puts the provider where `terraform init` finds it: a mirror on disk, as
// developer overrides would make init ask a registry.
func (b *Bed) makeMirror() error {
	mirror := b.n.path("mirror")
	dir := filepath.Join(mirror, providerSource, providerVersion, runtime.GOOS+"_"+runtime.GOARCH)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	to := filepath.Join(dir, providerProgram+"_v"+providerVersion)
	if err := copyProgram(filepath.Join(b.n.Bin, providerProgram), to); err != nil {
		return err
	}
	text := fmt.Sprintf("provider_installation {\n  filesystem_mirror {\n    path = %q\n  }\n}\n", mirror)
	return os.WriteFile(b.n.path("terraform.rc"), []byte(text), 0o644)
}

// copyProgram replaces a program in one rename: the old one may be running.
func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy program: %w (make build builds it)", err)
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(to), ".new*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	_, err = io.Copy(out, in)
	if err := errors.Join(err, out.Chmod(0o755), out.Close()); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return os.Rename(out.Name(), to)
}

// makeCommands writes the commands of the bed's directory. They are all of them one line
// of shell: what they do is in the testbed program.
func (b *Bed) makeCommands() error {
	for name, text := range b.n.commands(filepath.Join(b.n.Bin, "testbed"), b.Env()) {
		if err := os.WriteFile(b.n.path(name), []byte(text), 0o755); err != nil {
			return err
		}
	}
	return nil
}
