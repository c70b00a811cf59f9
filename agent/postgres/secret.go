package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/text/secure/precis"

	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

// PostgreSQL's own numbers.
const (
	scramRounds = 4096
	scramSalt   = 16
)

// Secret is what proves a password without being it, as PostgreSQL keeps it.
func Secret(password string) (string, error) {
	salt := make([]byte, scramSalt)
	rand.Read(salt)
	return secret(password, salt, scramRounds)
}

func secret(password string, salt []byte, rounds int) (string, error) {
	if password == "" {
		return "", fault.Field("password_wo", "make secret: the password is empty")
	}
	salted, err := pbkdf2.Key(sha256.New, prepared(password), salt, rounds, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("make secret: %w", err)
	}
	stored := sha256.Sum256(sum(salted, "Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", rounds, text(salt), text(stored[:]), text(sum(salted, "Server Key"))), nil
}

// Proves reports whether password is the one that secret was made of.
func Proves(secretText, password string) bool {
	rest, ok := strings.CutPrefix(secretText, "SCRAM-SHA-256$")
	head, _, ok2 := strings.Cut(rest, "$")
	count, saltText, ok3 := strings.Cut(head, ":")
	rounds, err := strconv.Atoi(count)
	salt, err2 := base64.StdEncoding.DecodeString(saltText)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || rounds < 1 || rounds > 1<<20 {
		return false
	}
	again, err := secret(password, salt, rounds)
	return err == nil && hmac.Equal([]byte(again), []byte(secretText))
}

// prepared is the password as both sides of SCRAM take it (SASLprep); text that has no such
// form is taken as it is, as PostgreSQL does.
func prepared(password string) string {
	if p, err := precis.OpaqueString.String(password); err == nil {
		return p
	}
	return password
}

func sum(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// Secrets is database.Secrets.
type Secrets struct{}

// Secret implements database.Secrets.
func (Secrets) Secret(password string) (string, error) { return Secret(password) }

// Proves implements database.Secrets.
func (Secrets) Proves(secret, password string) bool { return Proves(secret, password) }
