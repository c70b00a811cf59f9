package testbed

import (
	"fmt"
	"strings"
)

// hostCommands are the commands in the bed's directory that take hosts.
var hostCommands = []string{"kill-agent", "kill-host", "power-off", "start", "cut", "heal", "inventory"}

// commands are the shell programs in the bed's directory, by name.
func (n names) commands(testbed string, env []string) map[string]string {
	commands := map[string]string{}
	for _, name := range hostCommands {
		commands[name] = fmt.Sprintf("#!/bin/sh\nexec %s --dir %s %s \"$@\"\n", quote(testbed), quote(n.Dir), name)
	}
	quoted := make([]string, len(env))
	for i, e := range env {
		quoted[i] = quote(e)
	}
	commands["run"] = fmt.Sprintf("#!/bin/sh\n# Runs a command as the operator of the three hosts.\nexec env %s \\\n\tnsenter --net=%s -- \"$@\"\n",
		strings.Join(quoted, " \\\n\t"), quote(n.netns(Operator)))
	return commands
}

// quote makes a shell word of any text.
func quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
