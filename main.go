// The Terraform provider reflejo/reflejo. Terraform starts it; -debug keeps it running for
// a debugger and prints what to set so that Terraform uses it.
package main

import (
	"context"
	"flag"
	"log"

	"github.com/hashicorp/terraform-plugin-framework/provider"
	"github.com/hashicorp/terraform-plugin-framework/providerserver"

	reflejo "github.com/reflejo/terraform-provider-reflejo/provider"
)

// version is set when a release is built.
var version = "dev"

func main() {
	debug := flag.Bool("debug", false, "keep running and wait for a debugger")
	flag.Parse()
	options := providerserver.ServeOpts{Address: "registry.terraform.io/reflejo/reflejo", Debug: *debug, ProtocolVersion: 6}
	if err := providerserver.Serve(context.Background(), func() provider.Provider { return reflejo.New(version) }, options); err != nil {
		log.Fatalf("serve the provider: %v", err)
	}
}
