// Package api is how programs talk to an agent: the contract (reflejo/v1, Connect and
// gRPC), a client that dials with mutual TLS, and the way back from the wire's errors to
// fault kinds. It builds on every operating system.
//
//	creds, err := api.CredentialFiles("ca.crt", "ci.crt", "ci.key")
//	client, err := api.Dial(api.Config{Host: "alpha", Address: "198.18.0.11:7443", Credentials: creds})
//	defer client.Close()
//	got, err := client.Servers.GetServer(ctx, connect.NewRequest(&reflejov1.GetServerRequest{Id: "web"}))
//	if err = api.ErrorOf(err); fault.Is(err, fault.NotFound) { … }
package api

//go:generate go tool -modfile=../../.tools/buf/go.mod buf generate
