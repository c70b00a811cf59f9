// Package testbed makes hosts to try reflejo on: three of them on one Linux machine, each
// with an agent, and an operator beside them.
//
//	bed := testbed.New(testbed.Config{Dir: ".testbed", Bin: "bin"})
//	err := bed.Up(ctx)                       // again and again: only what is missing is made
//	out, err := bed.Command(ctx, "reflejo", "status").CombinedOutput()
//	err = bed.Host("alpha").KillAgent()
//	err = bed.Down(ctx)                      // nothing is left
//
// A host is a network namespace, a mount namespace with a file system of its own for what
// a boot forgets, a control group and a directory. The hosts and the operator hang on a
// bridge in one more network namespace, the switch; the network of the machine itself is
// never touched. All hosts share one kernel, so what is kernel-wide (loop devices, sysctls
// outside a namespace) is shared as well.
//
//	          ┌ alpha 198.18.0.11 ┐
//	switch ───┼ beta  198.18.0.12 ┤ eth0 of each
//	 (bridge) ├ gamma 198.18.0.13 ┤
//	          └ operator 198.18.0.10
//
// Several beds live side by side when their Config.Name differ.
package testbed
