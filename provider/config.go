package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/hashicorp/terraform-plugin-framework/attr"
	"github.com/hashicorp/terraform-plugin-framework/diag"
	"github.com/hashicorp/terraform-plugin-framework/path"
	"github.com/hashicorp/terraform-plugin-framework/types"

	"github.com/reflejo/terraform-provider-reflejo/agent/api"
)

// providerConfig is the provider block.
type providerConfig struct {
	Hosts             types.Map    `tfsdk:"hosts"`
	CAFile            types.String `tfsdk:"ca_file"`
	CAPEM             types.String `tfsdk:"ca_pem"`
	CertFile          types.String `tfsdk:"cert_file"`
	CertPEM           types.String `tfsdk:"cert_pem"`
	KeyFile           types.String `tfsdk:"key_file"`
	KeyPEM            types.String `tfsdk:"key_pem"`
	ForgetUnreachable types.Bool   `tfsdk:"forget_unreachable"`
	LostHosts         types.Set    `tfsdk:"lost_hosts"`
}

type hostConfig struct {
	Address types.String `tfsdk:"address"`
}

// secret is one of the three things that a connection needs, from a file or as text.
type secret struct {
	name      string // ca, cert or key
	file, pem types.String
	env       string // variable that names a file
}

func (c providerConfig) secrets() []secret {
	return []secret{
		{"ca", c.CAFile, c.CAPEM, api.EnvCAFile},
		{"cert", c.CertFile, c.CertPEM, api.EnvCertFile},
		{"key", c.KeyFile, c.KeyPEM, api.EnvKeyFile},
	}
}

// validateFiles reports files that the block names and that can't be read.
func (c providerConfig) validateFiles() (diags diag.Diagnostics) {
	for _, s := range c.secrets() {
		if s.file.IsNull() || s.file.IsUnknown() || s.file.ValueString() == "" {
			continue
		}
		info, err := os.Stat(s.file.ValueString())
		switch at := path.Root(s.name + "_file"); {
		case errors.Is(err, fs.ErrNotExist):
			// Another resource may write it: Configure says so if it is still missing then.
		case err != nil:
			diags.AddAttributeError(at, "Unreadable file", invalid(at, err.Error()))
		case info.IsDir():
			diags.AddAttributeError(at, "Unreadable file", invalid(at, fmt.Sprintf("%s is a directory", s.file.ValueString())))
		}
	}
	return diags
}

// unknown lists the attributes whose values Terraform does not know yet.
func (c providerConfig) unknown(ctx context.Context) []string {
	var names []string
	if tf, err := c.Hosts.ToTerraformValue(ctx); err == nil && !tf.IsFullyKnown() {
		names = append(names, "hosts")
	}
	if c.LostHosts.IsUnknown() || slices.ContainsFunc(c.LostHosts.Elements(), attr.Value.IsUnknown) {
		names = append(names, "lost_hosts")
	}
	for _, s := range c.secrets() {
		if s.file.IsUnknown() {
			names = append(names, s.name+"_file")
		}
		if s.pem.IsUnknown() {
			names = append(names, s.name+"_pem")
		}
	}
	return names
}

// hosts turns the block and the environment into the hosts to call. Values that are not
// known at plan time give hosts that no call reaches and that say why.
func (c providerConfig) hosts(ctx context.Context, getenv func(string) string) (*hosts, diag.Diagnostics) {
	var diags diag.Diagnostics
	h := newHosts()
	h.forget = c.ForgetUnreachable.ValueBool()
	if names := c.unknown(ctx); len(names) > 0 {
		h.unknown = strings.Join(names, ", ")
		return h, diags
	}
	c.lost(getenv, h.lost, &diags)
	addresses := c.addresses(ctx, getenv, &diags)
	credentials := c.credentials(getenv, &diags)
	if diags.HasError() {
		return nil, diags
	}
	for name, address := range addresses {
		client, err := api.Dial(api.Config{Host: name, Address: address, Credentials: credentials})
		if err != nil {
			at := path.Root("hosts").AtMapKey(name).AtName("address")
			diags.AddAttributeError(at, "Invalid host", invalid(at, err.Error()))
			continue
		}
		h.add(name, client)
	}
	return h, diags
}

// envLostHosts names the hosts that are gone for good, separated by commas.
const envLostHosts = "REFLEJO_LOST_HOSTS"

// lost reads the hosts that are gone for good.
func (c providerConfig) lost(getenv func(string) string, names map[string]bool, diags *diag.Diagnostics) {
	if !c.LostHosts.IsNull() {
		for _, name := range stringsOf(c.LostHosts) {
			names[name] = true
		}
		return
	}
	for name := range strings.SplitSeq(getenv(envLostHosts), ",") {
		name = strings.TrimSpace(name)
		if name != "" && !labelPattern.MatchString(name) {
			at := path.Root("lost_hosts")
			diags.AddAttributeError(at, "Invalid hosts in the environment", fmt.Sprintf("Attribute lost_hosts is not set, and in the environment variable %s %q is not the name of a host.", envLostHosts, clip(name)))
		}
		if name != "" {
			names[name] = true
		}
	}
}

func (c providerConfig) addresses(ctx context.Context, getenv func(string) string, diags *diag.Diagnostics) map[string]string {
	addresses := map[string]string{}
	if !c.Hosts.IsNull() {
		configured := map[string]hostConfig{}
		diags.Append(c.Hosts.ElementsAs(ctx, &configured, false)...)
		for name, host := range configured {
			addresses[name] = host.Address.ValueString()
		}
		return addresses
	}
	addresses, err := api.ParseHosts(getenv(api.EnvHosts))
	switch {
	case err != nil:
		diags.AddAttributeError(path.Root("hosts"), "Invalid hosts in the environment",
			fmt.Sprintf("Attribute hosts is not set, and the environment variable %s can't be read: %s.", api.EnvHosts, err))
	case len(addresses) == 0:
		diags.AddAttributeError(path.Root("hosts"), "No hosts",
			fmt.Sprintf("Attribute hosts is not set, and neither is the environment variable %s. Set one of them to the hosts that agents run on, such as %s=alpha=198.18.0.11:7443.", api.EnvHosts, api.EnvHosts))
	}
	return addresses
}

// credentials reads what to call the hosts with. All from files: they are read again when
// they change, so that a certificate renewed during a long apply is taken up.
func (c providerConfig) credentials(getenv func(string) string, diags *diag.Diagnostics) api.Credentials {
	files, texts, fromFiles := map[string]string{}, map[string][]byte{}, true
	for _, s := range c.secrets() {
		if !s.pem.IsNull() {
			texts[s.name], fromFiles = []byte(s.pem.ValueString()), false
			continue
		}
		name, at := s.file.ValueString(), path.Root(s.name+"_file")
		if name == "" {
			name = getenv(s.env)
		}
		if name == "" {
			diags.AddAttributeError(at, "No certificate to call the hosts with", fmt.Sprintf(
				"Neither %s_file nor %s_pem is set, and neither is the environment variable %s. The files are made with `reflejo pki`.", s.name, s.name, s.env))
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			diags.AddAttributeError(at, "Unreadable file", invalid(at, err.Error()))
			continue
		}
		files[s.name], texts[s.name] = name, text
	}
	if diags.HasError() {
		return nil
	}
	var credentials api.Credentials
	var err error
	if fromFiles {
		credentials, err = api.CredentialFiles(files["ca"], files["cert"], files["key"])
	} else {
		credentials, err = api.CredentialPEM(texts["ca"], texts["cert"], texts["key"])
	}
	if err != nil {
		at := path.Root("cert_file")
		if !c.CertPEM.IsNull() {
			at = path.Root("cert_pem")
		}
		diags.AddAttributeError(at, "Unusable certificate", fmt.Sprintf("The certificate, its key and the authority's certificate don't go together: %s.", err))
	}
	return credentials
}
