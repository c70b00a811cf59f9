package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/reflejo/terraform-provider-reflejo/agent/pki"
)

func (a *app) pkiCommand() *cobra.Command {
	var dir string
	c := group("pki", "Keep the private certificate authority of your hosts",
		a.pkiInitCommand(&dir), a.pkiIssueCommand(&dir), a.pkiRenewCommand(&dir), a.pkiShowCommand(&dir))
	c.PersistentFlags().StringVar(&dir, "dir", "pki", "directory of the authority")
	c.Long = `Keep the private certificate authority of your hosts. It needs no host: keep its
directory (ca.key above all) on a machine of yours, and copy to each host only ca.crt
and the host's own certificate and key.`
	return c
}

func (a *app) pkiInitCommand(dir *string) *cobra.Command {
	var name string
	var life time.Duration
	c := &cobra.Command{
		Use:   "init",
		Short: "Make a certificate authority",
		Args:  exactly(0, "no arguments"),
		RunE: func(*cobra.Command, []string) error {
			ca, err := pki.NewCA(name, life)
			if err != nil {
				return err
			}
			if err := ca.Save(*dir); err != nil {
				return err
			}
			return a.showCertificates([]string{filepath.Join(*dir, pki.CACertFile)})
		},
	}
	c.Flags().StringVar(&name, "name", "reflejo", "the authority's name, for people")
	c.Flags().DurationVar(&life, "life", pki.CALife, "how long it is valid")
	return c
}

func (a *app) pkiIssueCommand(dir *string) *cobra.Command {
	var o pki.Options
	var out string
	var replace bool
	c := &cobra.Command{
		Use:   "issue agent|operator|monitor NAME",
		Short: "Issue a certificate: NAME.crt and NAME.key",
		Long: `Issue a certificate: NAME.crt and NAME.key.

  agent     the daemon of host NAME; give the addresses where it is reached
  operator  a person or pipeline that may change everything
  monitor   somebody, or Prometheus, who may only look`,
		Example: "  reflejo pki issue agent alpha --address 198.18.0.11\n  reflejo pki issue operator ci --life 720h",
		Args:    exactly(2, "a role and a name"),
		RunE: func(_ *cobra.Command, args []string) error {
			id, err := pki.ParseIdentity(args[0], args[1])
			if err != nil {
				return &usageError{err}
			}
			ca, err := pki.LoadCA(*dir)
			if err != nil {
				return fmt.Errorf("%w (make an authority with `reflejo pki init`)", err)
			}
			pair, err := ca.Issue(id, o)
			if err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join(*dir, id.Name)
			}
			cert, key := out+".crt", out+".key"
			for _, f := range []string{cert, key} {
				if _, err := os.Lstat(f); err == nil && (!replace || isCA(f)) {
					return fmt.Errorf("%s is there already: use `reflejo pki renew`, another --out, or --replace", f)
				}
			}
			if err := pair.Save(cert, key); err != nil {
				return err
			}
			return a.showCertificates([]string{cert})
		},
	}
	c.Flags().StringSliceVar(&o.Addresses, "address", nil, "IP address or DNS name where the agent is reached, may be repeated")
	c.Flags().DurationVar(&o.Life, "life", pki.LeafLife, "how long it is valid")
	c.Flags().StringVar(&out, "out", "", "path of the files without .crt and .key (default: NAME in the authority's directory)")
	c.Flags().BoolVar(&replace, "replace", false, "replace what is there")
	return c
}

// isCA keeps --replace from taking the authority away.
func isCA(path string) bool {
	base := filepath.Base(path)
	return base == pki.CACertFile || base == pki.CAKeyFile
}

func (a *app) pkiRenewCommand(dir *string) *cobra.Command {
	var life time.Duration
	c := &cobra.Command{
		Use:   "renew NAME…",
		Short: "Replace certificates by newer ones for the same owners and addresses",
		Long: `Replace certificates by newer ones for the same owners and addresses, with new keys.
A NAME is one in the authority's directory, or the path of a .crt file with its .key
beside it. Agents take up renewed files at the next connection.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{errors.New("want names of certificates")}
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := pki.LoadCA(*dir)
			if err != nil {
				return err
			}
			var files []string
			for _, name := range args {
				cert := certificatePath(*dir, name)
				if err := renew(ca, cert, life); err != nil {
					return err
				}
				files = append(files, cert)
			}
			return a.showCertificates(files)
		},
	}
	c.Flags().DurationVar(&life, "life", pki.LeafLife, "how long the new ones are valid")
	return c
}

func renew(ca *pki.CA, cert string, life time.Duration) error {
	key := strings.TrimSuffix(cert, ".crt") + ".key"
	old, err := pki.LoadPair(cert, key)
	if err != nil {
		return err
	}
	pair, err := ca.Renew(old.Cert, life)
	if err != nil {
		return fmt.Errorf("%s: %w", cert, err)
	}
	return pair.Save(cert, key)
}

func certificatePath(dir, name string) string {
	if strings.HasSuffix(name, ".crt") {
		return name
	}
	return filepath.Join(dir, name+".crt")
}

func (a *app) pkiShowCommand(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "show [NAME…]",
		Short: "Show certificates and when they end",
		Long:  "Show certificates and when they end: all in the authority's directory, or those named.\nThe exit code is 1 when one of them has ended.",
		RunE: func(_ *cobra.Command, args []string) error {
			var files []string
			for _, name := range args {
				files = append(files, certificatePath(*dir, name))
			}
			if len(args) == 0 {
				var err error
				if files, err = filepath.Glob(filepath.Join(*dir, "*.crt")); err != nil || len(files) == 0 {
					return errors.Join(fmt.Errorf("no certificates in %s", *dir), err)
				}
			}
			return a.showCertificates(files)
		},
	}
}

// certificateView is a certificate as `pki show` prints it.
type certificateView struct {
	File      string    `json:"file"`
	Identity  string    `json:"identity"`
	Addresses []string  `json:"addresses,omitempty"`
	NotBefore time.Time `json:"not_before"`
	NotAfter  time.Time `json:"not_after"`
	Ended     bool      `json:"ended"`
}

func (a *app) showCertificates(files []string) error {
	now := time.Now()
	var views []certificateView
	ended := 0
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return fmt.Errorf("show certificate: %w", err)
		}
		cert, err := pki.ParseCertificate(text)
		if err != nil {
			return fmt.Errorf("%s: %w", f, err)
		}
		v := certificateView{File: f, Addresses: pki.AddressesOf(cert), NotBefore: cert.NotBefore.UTC(), NotAfter: cert.NotAfter.UTC(), Ended: now.After(cert.NotAfter)}
		if id, err := pki.IdentityOf(cert); err == nil {
			v.Identity = id.String()
		} else if cert.IsCA {
			v.Identity = "authority " + cert.Subject.CommonName
		}
		if v.Ended {
			ended++
		}
		views = append(views, v)
	}
	if err := a.printCertificates(views, now); err != nil {
		return err
	}
	if ended > 0 {
		return fmt.Errorf("%d of %d certificates have ended: renew them with `reflejo pki renew`", ended, len(views))
	}
	return nil
}

func (a *app) printCertificates(views []certificateView, now time.Time) error {
	if a.flags.output == "json" {
		return a.printJSON(views)
	}
	var rows [][]string
	for _, v := range views {
		left := "ended"
		if !v.Ended {
			left = fmt.Sprintf("%.0f days", v.NotAfter.Sub(now).Hours()/24)
		}
		rows = append(rows, []string{v.File, dash(v.Identity), dash(strings.Join(v.Addresses, ",")), v.NotAfter.Format(time.RFC3339), left})
	}
	return a.table([]string{"FILE", "IDENTITY", "ADDRESSES", "ENDS", "LEFT"}, rows)
}
