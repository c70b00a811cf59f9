package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Files names a party's own certificate and key, and the authority it trusts.
type Files struct {
	CA, Cert, Key string
}

// Source holds the credentials that a set of files has now. Each use looks whether the
// files changed and reads them anew; while they do not fit together (a renewal is half
// done) the last good ones stay in use. It is safe for several goroutines.
type Source struct {
	files Files

	mu      sync.Mutex
	stamp   [3]fileStamp
	current Credentials
	err     error // of the last reading
}

// Credentials are what a party needs for TLS.
type Credentials struct {
	Certificate tls.Certificate // Leaf is set
	CAs         *x509.CertPool
	Identity    Identity
}

// fileStamp tells a file's versions apart without reading it.
type fileStamp struct {
	size int64
	mod  time.Time
}

// NewSource reads the files once, so that wrong ones are an error at once.
func NewSource(files Files) (*Source, error) {
	s := &Source{files: files, err: errors.New("not read yet")}
	s.Get()
	if s.err != nil {
		return nil, s.err
	}
	return s, nil
}

// Get is the newest usable version of the credentials.
func (s *Source) Get() Credentials {
	s.mu.Lock()
	defer s.mu.Unlock()
	stamp := s.look()
	if stamp != s.stamp || s.err != nil {
		if c, err := s.files.load(); err != nil {
			s.err = err
		} else {
			s.current, s.stamp, s.err = c, stamp, nil
		}
	}
	return s.current
}

// Err tells why the files as they are now are not in use, nil when they are.
func (s *Source) Err() error {
	s.Get()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *Source) look() (stamp [3]fileStamp) {
	for i, name := range []string{s.files.CA, s.files.Cert, s.files.Key} {
		if info, err := os.Stat(name); err == nil {
			stamp[i] = fileStamp{size: info.Size(), mod: info.ModTime()}
		}
	}
	return stamp
}

func (f Files) load() (Credentials, error) {
	ca, err := readFile(f.CA)
	if err != nil {
		return Credentials{}, err
	}
	pair, err := LoadPair(f.Cert, f.Key)
	if err != nil {
		return Credentials{}, err
	}
	c, err := NewCredentials(ca, pair)
	if err != nil {
		return Credentials{}, fmt.Errorf("read %s, %s and %s: %w", f.CA, f.Cert, f.Key, err)
	}
	return c, nil
}

// NewCredentials makes credentials of PEM texts. The key must belong to the certificate
// and the certificate must come from the authority; it may have expired, so that a
// program starts and can say so.
func NewCredentials(ca []byte, pair Pair) (Credentials, error) {
	c := Credentials{CAs: x509.NewCertPool()}
	if !c.CAs.AppendCertsFromPEM(ca) {
		return Credentials{}, errors.New("no certificate of an authority in the CA file")
	}
	var err error
	if c.Certificate, err = tls.X509KeyPair(pair.Cert, pair.Key); err != nil {
		return Credentials{}, fmt.Errorf("certificate and key: %w", err)
	}
	leaf := c.Certificate.Leaf
	if c.Identity, err = IdentityOf(leaf); err != nil {
		return Credentials{}, err
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: c.CAs, CurrentTime: leaf.NotAfter, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return Credentials{}, fmt.Errorf("certificate of %s: %w", c.Identity, err)
	}
	return c, nil
}
