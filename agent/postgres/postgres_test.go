package postgres

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/reflejo/terraform-provider-reflejo/agent/database"
	"github.com/reflejo/terraform-provider-reflejo/agent/fault"
)

var sample = database.Cluster{
	ID: "d", Name: "orders", Server: "s", Major: 15, Port: 5432, Owner: "app",
	Parameters: map[string]string{"work_mem": "4MB", "search_path": `a', \b`},
	Clients:    database.Clients{CIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::/32")}, TLS: database.TLSRequire},
}

func TestFilesSayWhatIsWanted(t *testing.T) {
	l := Config{RunDir: "/r", StateDir: "/s"}.layout(sample)
	settings := settingsFile(sample, l)
	for _, line := range []string{"ssl = 'on'", "work_mem = '4MB'", `search_path = 'a'', \\b'`, "ssl_key_file = '/run/reflejo/databases/d/server.key'"} {
		if !strings.Contains(settings, "\n"+line+"\n") {
			t.Errorf("%q is not in\n%s", line, settings)
		}
	}
	access := map[database.TLS][]string{
		database.TLSRequire: {"hostssl all all 10.0.0.0/8 scram-sha-256", "hostssl all all 2001:db8::/32 scram-sha-256"},
		database.TLSAllow:   {"host all all 10.0.0.0/8 scram-sha-256"},
		database.TLSOff:     {"hostnossl all all 10.0.0.0/8 scram-sha-256"},
	}
	for kind, lines := range access {
		c := sample
		c.Clients.TLS = kind
		text := accessFile(c)
		for _, line := range lines {
			if !strings.Contains(text, "\n"+line+"\n") {
				t.Errorf("%s: %q is not in\n%s", kind, line, text)
			}
		}
		if strings.Index(text, "host all reflejo all reject") > strings.Index(text, "10.0.0.0/8") {
			t.Errorf("%s: the agent's role is not rejected first:\n%s", kind, text)
		}
		if off := settingsFile(c, l); strings.Contains(off, "ssl = 'off'") != (kind == database.TLSOff) {
			t.Errorf("%s:\n%s", kind, off)
		}
	}
}

// What the agent relies on is on the command line (hazards A14, B8), and no user may set it.
func TestReliedSettingsAreOnTheCommandLine(t *testing.T) {
	l := Config{}.layout(sample)
	argv := strings.Join(commandLine("/usr/lib/postgresql/15/bin", sample, l), " ")
	for _, want := range []string{"/usr/lib/postgresql/15/bin/postgres -D /var/lib/postgresql/15/d -c ", "restart_after_crash=off", "wal_level=replica", "fsync=on", "full_page_writes=on", "port=5432"} {
		if !strings.Contains(argv, want) {
			t.Errorf("%q is not in %s", want, argv)
		}
	}
	for name := range relied(sample, l) {
		s := database.Spec{ID: "00000000-0000-0000-0000-000000000000", Server: "00000000-0000-0000-0000-000000000000", Name: "a", Owner: "b",
			Parameters: map[string]string{name: "x"}}.WithDefaults()
		if err := s.Validate(); fault.FieldOf(err) != "parameters."+name {
			t.Errorf("a user may set %s: %v", name, err)
		}
	}
}

func TestDifferencesAreSeen(t *testing.T) {
	want := map[string]string{"fsync": "on", "port": "5432", "not_in_this_version": "x"}
	if got := different(want, map[string]string{"fsync": "on", "port": "5432"}); got != nil {
		t.Errorf("%v", got)
	}
	if got := different(want, map[string]string{"fsync": "off", "port": "5432"}); len(got) != 1 || got[0] != `fsync is "off", not "on"` {
		t.Errorf("%v", got)
	}
	contexts := parseContexts("shared_buffers\tpostmaster\tx\nwork_mem\tuser\ty\nblock_size\tinternal\tz\nbroken\n")
	p := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	for _, c := range []struct {
		was, want map[string]string
		effect    database.Effect
	}{
		{nil, nil, database.EffectNone},
		{p("work_mem", "1"), p("work_mem", "1"), database.EffectNone},
		{p("work_mem", "1"), p("work_mem", "2"), database.EffectReload},
		{p("work_mem", "1"), nil, database.EffectReload},
		{nil, p("an.extension", "1"), database.EffectReload},
		{nil, p("shared_buffers", "1"), database.EffectRestart},
		{p("shared_buffers", "1", "work_mem", "1"), p("work_mem", "2"), database.EffectRestart},
	} {
		if got := effect(contexts, c.was, c.want); got != c.effect {
			t.Errorf("%v → %v: %s, want %s", c.was, c.want, got, c.effect)
		}
	}
	if refuse(contexts, "block_size") == nil || refuse(contexts, "work_mem") != nil {
		t.Error("what is fixed is not refused, or what is not is")
	}
}

func TestAnswersAreRead(t *testing.T) {
	versions := parseVersions("/usr/lib/postgresql/13/bin/postgres\n/usr/lib/postgresql/15/bin/postgres\n/usr/pgsql-16/bin/postgres\n/etc/passwd\n/usr/lib/postgresql/../bin/postgres\n")
	if !slices.Equal(versions, []version{{16, "/usr/pgsql-16/bin"}, {15, "/usr/lib/postgresql/15/bin"}, {13, "/usr/lib/postgresql/13/bin"}}) {
		t.Errorf("%v", versions)
	}
	d, err := ParseControlData("pg_control version number: 1300\nDatabase system identifier:  7001\nDatabase cluster state:  in production\nLatest checkpoint location: 0/1\n" +
		"Latest checkpoint's REDO location: 0/2\nLatest checkpoint's TimeLineID:       3\nData page checksum version:  1\n")
	if err != nil || d.Identity != "7001" || d.State != "in production" || d.Timeline != 3 || d.Redo != "0/2" || !d.Checksums {
		t.Errorf("%+v %v", d, err)
	}
	for _, bad := range []string{"", "nonsense", "Database system identifier: x\nDatabase cluster state: y\nLatest checkpoint's TimeLineID: 1\n", "Database system identifier: 1\nDatabase cluster state: y\n"} {
		if _, err := ParseControlData(bad); !fault.Is(err, fault.Precondition) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	text := refusal("2026-11-27 [1] FATAL:  invalid value for parameter \"work_mem\": \"x\"\n2026 [1] HINT:  Valid units are \"B\".\n")
	if text != `invalid value for parameter "work_mem": "x"; Valid units are "B"` {
		t.Error(text)
	}
}

func FuzzAnswers(f *testing.F) {
	f.Add("Database system identifier:  7001\nDatabase cluster state:  in production\nLatest checkpoint's TimeLineID:       3\n")
	f.Add("/usr/lib/postgresql/15/bin/postgres\n")
	f.Fuzz(func(t *testing.T, text string) {
		if d, err := ParseControlData(text); err == nil && (d.Identity == "" || d.State == "") {
			t.Errorf("%+v", d)
		}
		for _, v := range parseVersions(text) {
			if v.major < 10 || !strings.HasPrefix(v.bin, "/usr/") {
				t.Errorf("%+v", v)
			}
		}
		parseContexts(text)
		refusal(text)
	})
}

// RFC 7677 gives an example; PostgreSQL keeps the two keys of it.
func TestSecretsProve(t *testing.T) {
	salt := []byte{0x5b, 0x6d, 0x99, 0x68, 0x9d, 0x12, 0x35, 0x8e, 0xec, 0xa0, 0x4b, 0x14, 0x12, 0x36, 0xfa, 0x81}
	got, err := secret("pencil", salt, 4096)
	if err != nil || got != "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=" {
		t.Errorf("%s %v", got, err)
	}
	s, err := Secret("pässword")
	if err != nil || !Proves(s, "pässword") || Proves(s, "password") || Proves(s, "") {
		t.Errorf("%s %v", s, err)
	}
	if again, _ := Secret("pässword"); again == s {
		t.Error("two secrets of one password are the same")
	}
	if _, err := Secret(""); !fault.Is(err, fault.Invalid) {
		t.Errorf("no password: %v", err)
	}
	for _, bad := range []string{"", "md5abc", "SCRAM-SHA-256$", "SCRAM-SHA-256$x:y$z", "SCRAM-SHA-256$999999999:AAAA$x:y"} {
		if Proves(bad, "pencil") {
			t.Errorf("%q proves it", bad)
		}
	}
}

func TestCertificatesAreGood(t *testing.T) {
	now := time.Now()
	c, err := selfSigned("orders", []string{"198.18.0.1", "alpha.example"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tls.X509KeyPair(c.Cert, c.Key); err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(c.Cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"198.18.0.1", "alpha.example", "orders"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
}

func TestErrorsHaveKinds(t *testing.T) {
	for code, kind := range map[string]fault.Kind{cannotConnectNow: fault.Unavailable, adminShutdown: fault.Unavailable, diskFull: fault.Exhausted, dataCorrupted: fault.Precondition, "42601": fault.Internal} {
		err := classify(&pgconn.PgError{Code: code})
		if fault.KindOf(err) != kind || sqlState(err) != code {
			t.Errorf("%s is %s", code, fault.KindOf(err))
		}
	}
	if err := errors.New("x"); classify(err) != err {
		t.Error("not PostgreSQL's")
	}
}

func TestStatementsAreQuoted(t *testing.T) {
	c := database.Cluster{Owner: `a"b`, Secret: `x'y\z`}
	got := ownerStatements(c, nil)
	if !slices.Equal(got, []string{`CREATE ROLE "a""b" LOGIN`, `ALTER ROLE "a""b" PASSWORD E'x\'y\\z'`}) {
		t.Errorf("%q", got)
	}
	if got := ownerStatements(c, [][]string{{c.Secret, "t"}}); got != nil {
		t.Errorf("%q", got)
	}
	if got := ownerStatements(c, [][]string{{c.Secret, "f"}}); len(got) != 1 {
		t.Errorf("%q", got)
	}
}
