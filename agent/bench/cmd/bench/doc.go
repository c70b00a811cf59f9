// Command bench is `make bench`: it prints how fast, exact and small reflejo is on this
// machine, against a floor and, where lxd is installed, against LXD. It needs root.
package main
