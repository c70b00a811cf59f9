// Package installed has the tests of an agent that was installed as users install it: from the
// Debian package, below systemd, on a host of its own. They run inside the test machine only
// (tag vmguest; package testvm compiles and sends them there), in this order:
//
//	TestInstalled      package, certificates, configuration, service, and a server's whole life
//	TestAfterPowerCut  on the same disk, after the machine lost power in the middle of it
//	TestAfterReboot    on the same disk, after the machine was rebooted in order
package installed
