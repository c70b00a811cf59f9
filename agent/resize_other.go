//go:build !unix

package main

import reflejov1 "github.com/reflejo/terraform-provider-reflejo/agent/api/reflejo/v1"

// onResize: this system tells nobody that a terminal's size has changed.
func (a *app) onResize(func(*reflejov1.WindowSize)) (stop func()) { return func() {} }
