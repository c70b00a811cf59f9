package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"regexp"
	"time"
)

// Lives of certificates where nothing else is asked.
const (
	CALife   = 10 * 365 * 24 * time.Hour
	LeafLife = 365 * 24 * time.Hour
)

// backdate lets a certificate work on hosts whose clock is a little behind the issuer's.
const backdate = 5 * time.Minute

// Pair is a certificate and its private key, PEM.
type Pair struct {
	Cert []byte
	Key  []byte
}

// CA issues certificates.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
	pair Pair
}

// NewCA makes a certificate authority with a new P-256 key. It may only issue leaf
// certificates. A life of 0 means [CALife].
func NewCA(name string, life time.Duration) (*CA, error) {
	if life == 0 {
		life = CALife
	}
	now := time.Now()
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name, Organization: []string{Scheme}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(life),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	pair, err := sign(template, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("make certificate authority %q: %w", name, err)
	}
	return ParseCA(pair)
}

// ParseCA reads an authority from its PEM.
func ParseCA(pair Pair) (*CA, error) {
	cert, err := ParseCertificate(pair.Cert)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	if !cert.IsCA {
		return nil, errors.New("read certificate authority: the certificate is not one of an authority")
	}
	block, _ := pem.Decode(pair.Key)
	if block == nil {
		return nil, errors.New("read certificate authority: the key is not PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority's key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read certificate authority's key: %T can't sign", key)
	}
	if public, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(cert.PublicKey) {
		return nil, errors.New("read certificate authority: the key does not belong to the certificate")
	}
	return &CA{cert: cert, key: signer, pair: pair}, nil
}

// Pair is the authority's own certificate and key.
func (ca *CA) Pair() Pair { return ca.pair }

// Certificate is the authority's certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Options are the parts of a certificate besides its identity.
type Options struct {
	Addresses []string      // IP addresses and DNS names where an agent is reached; agents only
	Life      time.Duration // 0 means LeafLife; never longer than the authority's
	NotBefore time.Time     // zero means now, less a little for clocks that are behind
}

var validHost = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// ValidAddress reports whether a text is an IP address or a DNS name.
func ValidAddress(text string) bool {
	return net.ParseIP(text) != nil || (len(text) <= 253 && validHost.MatchString(text))
}

// Issue makes a certificate with a new P-256 key. An agent's serves and calls, all
// others only call.
func (ca *CA) Issue(id Identity, o Options) (Pair, error) {
	if _, err := ParseIdentity(string(id.Role), id.Name); err != nil {
		return Pair{}, fmt.Errorf("issue certificate: %w", err)
	}
	if o.Life == 0 {
		o.Life = LeafLife
	}
	if o.Life < 0 {
		return Pair{}, fmt.Errorf("issue certificate for %s: a life of %s is over already", id, o.Life)
	}
	if o.NotBefore.IsZero() {
		o.NotBefore = time.Now().Add(-backdate)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: id.Name, Organization: []string{Scheme}, OrganizationalUnit: []string{string(id.Role)}},
		NotBefore:   o.NotBefore,
		NotAfter:    time.Now().Add(o.Life),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{id.url()},
	}
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	if id.Role == RoleAgent {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	} else if len(o.Addresses) > 0 {
		return Pair{}, fmt.Errorf("issue certificate for %s: only an agent has addresses", id)
	}
	for _, a := range o.Addresses {
		if ip := net.ParseIP(a); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if ValidAddress(a) {
			template.DNSNames = append(template.DNSNames, a)
		} else {
			return Pair{}, fmt.Errorf("issue certificate for %s: address %q is neither an IP address nor a DNS name (leave out the port)", id, a)
		}
	}
	pair, err := sign(template, ca.cert, ca.key)
	if err != nil {
		return Pair{}, fmt.Errorf("issue certificate for %s: %w", id, err)
	}
	return pair, nil
}

// Renew issues a certificate for the same identity and addresses, with a new key.
// Only a certificate that this authority issued can be renewed; it may have expired.
func (ca *CA) Renew(certPEM []byte, life time.Duration) (Pair, error) {
	old, err := ParseCertificate(certPEM)
	if err != nil {
		return Pair{}, fmt.Errorf("renew certificate: %w", err)
	}
	if err := old.CheckSignatureFrom(ca.cert); err != nil {
		return Pair{}, fmt.Errorf("renew certificate of %q: not issued by this authority: %w", old.Subject.CommonName, err)
	}
	id, err := IdentityOf(old)
	if err != nil {
		return Pair{}, fmt.Errorf("renew certificate: %w", err)
	}
	return ca.Issue(id, Options{Addresses: AddressesOf(old), Life: life})
}

// AddressesOf lists the IP addresses and DNS names in a certificate.
func AddressesOf(cert *x509.Certificate) []string {
	var list []string
	for _, ip := range cert.IPAddresses {
		list = append(list, ip.String())
	}
	return append(list, cert.DNSNames...)
}

// ParseCertificate reads the first certificate of a PEM text.
func ParseCertificate(text []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("read certificate: no PEM block of type CERTIFICATE")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	return cert, nil
}

// sign makes a key and a certificate for it; without a parent it signs itself.
func sign(template, parent *x509.Certificate, parentKey crypto.Signer) (Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return Pair{}, err
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return Pair{}, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}, nil
}
