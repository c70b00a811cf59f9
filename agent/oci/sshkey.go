package oci

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"fmt"
)

// sshHostKeyPath is the key that we give a server instead of those its image, or the
// server it was cloned from, had: with them anybody could pose as it.
const sshHostKeyPath = "/etc/ssh/ssh_host_ed25519_key"

// newSSHHostKey makes an Ed25519 host key in OpenSSH's own format (PROTOCOL.key: a magic
// word, three empty-cipher strings, the public key, and a padded private section).
func newSSHHostKey(comment string) (private, public string, err error) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make SSH host key: %w", err)
	}
	const algorithm = "ssh-ed25519"
	blob := sshStrings([]byte(algorithm), pub)
	var check [4]byte
	if _, err := rand.Read(check[:]); err != nil {
		return "", "", fmt.Errorf("make SSH host key: %w", err)
	}
	section := append(append([]byte(nil), check[:]...), check[:]...)
	section = append(section, sshStrings([]byte(algorithm), pub, priv, []byte(comment))...)
	for i := byte(1); len(section)%8 != 0; i++ {
		section = append(section, i)
	}
	out := append([]byte("openssh-key-v1\x00"), sshStrings([]byte("none"), []byte("none"), nil)...)
	out = binary.BigEndian.AppendUint32(out, 1) // keys
	out = append(out, sshStrings(blob, section)...)
	private = string(pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: out}))
	return private, algorithm + " " + base64.StdEncoding.EncodeToString(blob) + " " + comment + "\n", nil
}

// sshStrings writes each part after its length.
func sshStrings(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = binary.BigEndian.AppendUint32(out, uint32(len(p)))
		out = append(out, p...)
	}
	return out
}
