package provider

import (
	"context"
	"fmt"
	"math/big"
	"net/netip"
	slashpath "path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // time zones are checked where Terraform runs, which may have no database of its own

	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/schema/validator"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
	"github.com/reflejo/terraform-provider-reflejo/agent/schedule"
	"github.com/reflejo/terraform-provider-reflejo/agent/units"
)

func duration(n int64) time.Duration { return time.Duration(n) }

// invalid is the detail of an error about one attribute's value: it names the attribute,
// since not every front end shows the path beside the text.
func invalid(p path.Path, problem string) string {
	return fmt.Sprintf("Attribute %s: %s.", p, strings.TrimSuffix(problem, "."))
}

// check is a validator of strings made of a function whose error says what is wanted.
type check struct {
	what string
	fn   func(string) error
}

func (c check) Description(context.Context) string         { return "value must be " + c.what }
func (c check) MarkdownDescription(context.Context) string { return "value must be " + c.what }

func (c check) ValidateString(_ context.Context, req validator.StringRequest, resp *validator.StringResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	if err := c.fn(req.ConfigValue.ValueString()); err != nil {
		resp.Diagnostics.AddAttributeError(req.Path, "Invalid value", invalid(req.Path, err.Error()))
	}
}

var (
	uuidPattern     = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	digestPattern   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	labelPattern    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	hostnamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)
	nicPattern      = regexp.MustCompile(`^[a-z][a-z0-9]{0,14}$`)
	keyPattern      = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	pinPattern      = regexp.MustCompile(`^[0-9]{1,4}(-[0-9]{1,4})?(,[0-9]{1,4}(-[0-9]{1,4})?)*$`)
)

// nameValidator accepts a DNS label, the form of every name in reflejo.
func nameValidator() check {
	return check{"a DNS label", func(s string) error {
		if !labelPattern.MatchString(s) {
			return fmt.Errorf("%q is not a name: write lower-case letters, digits and inner hyphens, at most 63 characters", clip(s))
		}
		return nil
	}}
}

// idValidator accepts a UUID in lower case.
func idValidator() check {
	return check{"a UUID", func(s string) error {
		if !uuidPattern.MatchString(s) {
			return fmt.Errorf("%q is not an id: ids are UUIDs in lower case", clip(s))
		}
		return nil
	}}
}

// referenceValidator accepts a name, or an id in the form that pattern gives.
func referenceValidator(what string, id *regexp.Regexp) check {
	return check{"the id or name of " + what, func(s string) error {
		if !id.MatchString(s) && !labelPattern.MatchString(s) {
			return fmt.Errorf("%q is neither an id nor a name of %s", clip(s), what)
		}
		return nil
	}}
}

func digestValidator() check {
	return check{"a SHA-256 digest", func(s string) error {
		if !digestPattern.MatchString(s) {
			return fmt.Errorf("%q is not a digest: write \"sha256:\" and 64 hexadecimal digits in lower case", clip(s))
		}
		return nil
	}}
}

func hostnameValidator(longest int) check {
	return check{"a host name", func(s string) error {
		if len(s) > longest || !hostnamePattern.MatchString(s) {
			return fmt.Errorf("%q is not a host name: write labels of letters, digits and inner hyphens with dots between, at most %d characters", clip(s), longest)
		}
		return nil
	}}
}

func interfaceValidator() check {
	return check{"an interface name", func(s string) error {
		if !nicPattern.MatchString(s) || s == "lo" {
			return fmt.Errorf("%q is not an interface name: write a lower-case letter and up to 14 letters and digits, such as \"eth0\"", clip(s))
		}
		return nil
	}}
}

func labelKeyValidator() check {
	return check{"a label key", func(s string) error {
		if !keyPattern.MatchString(s) {
			return fmt.Errorf("%q is not a label key: write letters, digits, '.', '_', '/' and '-', at most 63 characters", clip(s))
		}
		return nil
	}}
}

func timezoneValidator() check {
	return check{"an IANA time zone", func(s string) error {
		if _, err := time.LoadLocation(s); err != nil || s == "" || s == "Local" {
			return fmt.Errorf("%q is not a time zone: write an IANA name such as \"Europe/Madrid\" or \"UTC\"", clip(s))
		}
		return nil
	}}
}

func ipValidator() check {
	return check{"an IP address", func(s string) error {
		if _, err := netip.ParseAddr(s); err != nil {
			return fmt.Errorf("%q is not an IP address", clip(s))
		}
		return nil
	}}
}

func ipv4Validator() check {
	return check{"an IPv4 address", func(s string) error {
		if a, err := netip.ParseAddr(s); err != nil || !a.Is4() {
			return fmt.Errorf("%q is not an IPv4 address: write it without a prefix length, such as \"10.77.0.10\"", clip(s))
		}
		return nil
	}}
}

// rangeValidator accepts an IPv4 range whose host bits are zero.
func rangeValidator() check {
	return check{"an IPv4 range", func(s string) error {
		_, err := parseRange(s)
		return err
	}}
}

func parseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is4() {
		return netip.Prefix{}, fmt.Errorf("%q is not an IPv4 range: write an address and a prefix length, such as \"10.77.0.0/16\"", clip(s))
	}
	if p.Masked() != p {
		return netip.Prefix{}, fmt.Errorf("%q has bits set beyond its prefix length: write %q", s, p.Masked())
	}
	return p, nil
}

// networkRangeValidator accepts a range that a network can have: private, and large
// enough for a gateway and servers, small enough to be one segment.
func networkRangeValidator() check {
	return check{"a private IPv4 range for a network", func(s string) error {
		p, err := parseRange(s)
		if err != nil {
			return err
		}
		if p.Bits() < 8 || p.Bits() > 28 {
			return fmt.Errorf("%q has a prefix length of %d: a network's is 8 to 28", s, p.Bits())
		}
		a := p.Addr()
		if a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() {
			return fmt.Errorf("%q can't be used for a network: write a unicast range that nothing else uses, such as \"10.77.0.0/16\"", s)
		}
		return nil
	}}
}

func portsValidator() check {
	return check{"a port or a range of ports", func(s string) error {
		a, b, isRange := strings.Cut(s, "-")
		if !isRange {
			b = a
		}
		low, err1 := strconv.ParseUint(a, 10, 16)
		high, err2 := strconv.ParseUint(b, 10, 16)
		if err1 != nil || err2 != nil || low == 0 || high < low {
			return fmt.Errorf("%q is neither a port nor a range of ports: write \"5432\" or \"8000-8010\", within 1 to 65535", clip(s))
		}
		return nil
	}}
}

func pinValidator() check {
	return check{"a list of cores", func(s string) error {
		_, err := parsePin(s)
		return err
	}}
}

// parsePin reads a cpuset list, "0-1,4", into ascending core numbers.
func parsePin(s string) ([]int, error) {
	if !pinPattern.MatchString(s) || len(s) > 1024 {
		return nil, fmt.Errorf("%q is not a list of cores: write numbers and ranges, such as \"0-1,4\"", clip(s))
	}
	var cores []int
	for part := range strings.SplitSeq(s, ",") {
		a, b, isRange := strings.Cut(part, "-")
		if !isRange {
			b = a
		}
		low, _ := strconv.Atoi(a) // digits, says the pattern
		high, _ := strconv.Atoi(b)
		if high < low {
			return nil, fmt.Errorf("%q is not a list of cores: range %s ends before it begins", s, part)
		}
		for c := low; c <= high; c++ {
			cores = append(cores, c)
		}
	}
	slices.Sort(cores)
	return slices.Compact(cores), nil
}

func addressValidator() check {
	return check{"a host and port", func(s string) error {
		_, err := api.Address(s)
		return err
	}}
}

func pemValidator(block string) check {
	return check{"PEM text", func(s string) error {
		if !strings.Contains(s, "-----BEGIN ") || !strings.Contains(s, block+"-----") {
			return fmt.Errorf("this is not PEM text with a %s; to name a file use the attribute that ends in _file", block)
		}
		return nil
	}}
}

// sourceValidator accepts where an image may come from; whether a local file is there is asked at plan time.
func sourceValidator() check {
	return check{"the source of an image", func(s string) error {
		rest, isOCI := strings.CutPrefix(s, "oci://")
		onHost, isHost := strings.CutPrefix(s, "host:")
		switch {
		case s == "":
			return fmt.Errorf("it is empty: write \"oci://registry/name:tag\", \"host:/path\" or the path of a tar file or directory")
		case len(s) > 1024:
			return fmt.Errorf("it is longer than 1024 characters")
		case isOCI && (!strings.Contains(rest, "/") || strings.HasPrefix(rest, "/") || strings.HasSuffix(rest, "/") || strings.ContainsAny(rest, " \t")):
			return fmt.Errorf("%q is not an OCI reference: write \"oci://registry/name:tag\" or \"oci://registry/name@sha256:…\"", clip(s))
		case isHost && (!strings.HasPrefix(onHost, "/") || filepath.ToSlash(filepath.Clean(onHost)) != onHost):
			return fmt.Errorf("%q is not a path on the host: write \"host:\" and a clean absolute path, such as \"host:/var/lib/images/debian.tar\"", clip(s))
		case !isOCI && strings.Contains(s, "://"):
			return fmt.Errorf("%q has a scheme that is not known: write \"oci://registry/name:tag\", \"host:/path\" or a local path", clip(s))
		}
		return nil
	}}
}

// scheduleValidator accepts what the agent's own reader of schedules does.
func scheduleValidator() check {
	return check{"a schedule as cron has it", func(s string) error {
		_, err := schedule.Parse(s)
		return err
	}}
}

var bucketPattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

// targetValidator accepts where backups can be.
func targetValidator() check {
	return check{"where backups can be", func(s string) error {
		dir, isDir := strings.CutPrefix(s, "dir:")
		host, isHost := strings.CutPrefix(s, "host:")
		store, isStore := strings.CutPrefix(s, "s3://")
		bucket, prefix, _ := strings.Cut(store, "/")
		switch {
		case len(s) > 1024:
			return fmt.Errorf("it is longer than 1024 characters")
		case isDir && (!strings.HasPrefix(dir, "/") || dir == "/" || slashpath.Clean(dir) != dir):
			return fmt.Errorf("%q is not a directory of the host: write \"dir:\" and a clean absolute path, such as \"dir:/var/backups/reflejo\"", clip(s))
		case isHost && !labelPattern.MatchString(host):
			return fmt.Errorf("%q names no host: write \"host:\" and the name of its agent, such as \"host:beta\"", clip(s))
		case isStore && (!bucketPattern.MatchString(bucket) || strings.ContainsAny(prefix, " \t\\?#") || strings.Contains("/"+prefix+"/", "/../")):
			return fmt.Errorf("%q is not a place in a store: write \"s3://bucket\" or \"s3://bucket/prefix\"", clip(s))
		case !isDir && !isHost && !isStore:
			return fmt.Errorf("%q is no target of backups: write \"host:NAME\", \"s3://bucket/prefix\" or \"dir:/path\"", clip(s))
		}
		return nil
	}}
}

// firstBootValidator accepts what a server can be given for its first start.
func firstBootValidator() check {
	return check{"cloud-init user data or a script", func(s string) error {
		switch {
		case len(s) > 256<<10:
			return fmt.Errorf("it has %d bytes, at most %d are taken", len(s), 256<<10)
		case !strings.HasPrefix(s, "#!") && !strings.HasPrefix(s, "#cloud-config"):
			return fmt.Errorf("it begins neither with \"#cloud-config\" nor with \"#!\" (a script)")
		}
		return nil
	}}
}

// between bounds a quantity; low and high are written as a user would.
func between(m measure, low, high string) check {
	l, errL := measures[m].parse(low)
	h, errH := measures[m].parse(high)
	if errL != nil || errH != nil {
		panic(fmt.Sprintf("bounds %q, %q of a %s", low, high, measures[m].name)) // a constant of ours is wrong; the first test sees it
	}
	return check{low + " to " + high, func(s string) error {
		n, err := measures[m].parse(s)
		if err != nil {
			return nil // the type says so already
		}
		if n < l || n > h {
			return fmt.Errorf("%q is out of bounds: write %s to %s", clip(s), low, high)
		}
		return nil
	}}
}

// wholeBlocks wants a size in whole blocks of 4 KiB.
func wholeBlocks() check {
	return check{"a multiple of 4KiB", func(s string) error {
		if n, err := units.ParseBytes(s); err == nil && n%4096 != 0 {
			return fmt.Errorf("%q is not a multiple of 4KiB", clip(s))
		}
		return nil
	}}
}

// coresValidator bounds a number of cores.
type coresValidator struct{}

func (coresValidator) Description(context.Context) string {
	return "value must be 0.01 to 4096, with at most three decimals"
}

func (v coresValidator) MarkdownDescription(ctx context.Context) string { return v.Description(ctx) }

func (coresValidator) ValidateNumber(_ context.Context, req validator.NumberRequest, resp *validator.NumberResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	milli, err := milliCores(req.ConfigValue.ValueBigFloat())
	if err == nil && (milli < 10 || milli > 4096*1000) {
		err = fmt.Errorf("%s cores are out of bounds: write 0.01 to 4096", units.FormatCores(milli))
	}
	if err != nil {
		resp.Diagnostics.AddAttributeError(req.Path, "Invalid number of cores", invalid(req.Path, err.Error()))
	}
}

// wholeValidator bounds a whole number.
type wholeValidator struct{ low, high int64 }

func (v wholeValidator) Description(context.Context) string {
	return fmt.Sprintf("value must be a whole number from %d to %d", v.low, v.high)
}

func (v wholeValidator) MarkdownDescription(ctx context.Context) string { return v.Description(ctx) }

func (v wholeValidator) ValidateNumber(_ context.Context, req validator.NumberRequest, resp *validator.NumberResponse) {
	if req.ConfigValue.IsNull() || req.ConfigValue.IsUnknown() {
		return
	}
	n, accuracy := req.ConfigValue.ValueBigFloat().Int64()
	if accuracy != big.Exact || n < v.low || n > v.high {
		resp.Diagnostics.AddAttributeError(req.Path, "Invalid number",
			invalid(req.Path, fmt.Sprintf("%s is not a whole number from %d to %d", req.ConfigValue.ValueBigFloat().Text('g', 20), v.low, v.high)))
	}
}

// milliCores is a number of cores in thousandths, exactly.
func milliCores(v *big.Float) (int64, error) {
	if v == nil {
		return 0, fmt.Errorf("there is no number")
	}
	return units.ParseCores(v.Text('f', -1))
}

// coresNumber is the number that HCL reads from the same decimal text.
func coresNumber(milli int64) *big.Float {
	f, _, err := big.ParseFloat(units.FormatCores(milli), 10, 512, big.ToNearestEven)
	if err != nil {
		return big.NewFloat(float64(milli) / 1000) // can't happen: the formatter writes decimals
	}
	return f
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}
