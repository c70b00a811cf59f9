package pki

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Names of an authority's files in its directory.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
)

// maxFile bounds what is read from a certificate or key file.
const maxFile = 1 << 20

// LoadCA reads the authority that [CA.Save] wrote to a directory.
func LoadCA(dir string) (*CA, error) {
	pair, err := LoadPair(filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, err
	}
	return ParseCA(pair)
}

// Save writes the authority's certificate and key to a directory, which it makes if need
// be (mode 0700). An authority that is there already is an error, never overwritten.
func (ca *CA) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save certificate authority: %w", err)
	}
	for _, name := range []string{CAKeyFile, CACertFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("save certificate authority: %s: %w", filepath.Join(dir, name), errors.Join(os.ErrExist, err))
		}
	}
	return ca.pair.Save(filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile))
}

// LoadPair reads a certificate and a key file without checking that they belong together.
func LoadPair(certFile, keyFile string) (Pair, error) {
	cert, err := readFile(certFile)
	if err != nil {
		return Pair{}, err
	}
	key, err := readFile(keyFile)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: cert, Key: key}, nil
}

// Save writes the key (mode 0600), then the certificate (0644: it is public), each in one
// rename, so a reader never sees half a file. What is there is replaced.
func (p Pair) Save(certFile, keyFile string) error {
	if err := writeFile(keyFile, p.Key, 0o600); err != nil {
		return err
	}
	return writeFile(certFile, p.Cert, 0o644)
}

func writeFile(name string, data []byte, mode os.FileMode) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // nothing is left of it after the rename
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func readFile(name string) ([]byte, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() || info.Size() > maxFile {
		return nil, fmt.Errorf("read %s: not a file of at most %d bytes", name, maxFile)
	}
	return os.ReadFile(name)
}
