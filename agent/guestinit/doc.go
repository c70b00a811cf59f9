// Package guestinit is the body of `reflejo init`: the first process of a virtual
// server whose image brings no init system of its own.
//
// It does three small things, in this order:
//
//  1. run the first-boot script once, if the host left one;
//  2. become the image's own init (-exec), or run the image's entry point as its only
//     child, or, with no command at all, just stay so that commands can be run;
//  3. reap every orphan, pass signals on, and leave with the child's exit code.
//
// Nothing is ever restarted: when the entry point ends, so does the server, and what
// happens next is for the host to decide. The program imports next to nothing, because
// every such server on a host has one of it in memory.
package guestinit
