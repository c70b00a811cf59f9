// Package console keeps the servers' terminals.
//
// Every server's init has a terminal, and somebody has to hold the other end (the
// master): read what is printed so that nobody blocks, and log it. The agent cannot be
// that somebody, because it is restarted and upgraded while servers run. So one small
// process per agent, the keeper (`reflejo console-keeper`), does nothing else:
//
//	runc create ──master──▶ keeper ──▶ bounded log file per server
//	                          ▲ └────▶ people who joined
//	                        agent (Client), over a unix socket
//
// The agent keeps a second descriptor of every master. When the keeper dies the agent
// starts another and hands them back, and when the agent dies the next one asks the
// keeper for them. What is printed in between waits in the kernel (4 KiB and a blocked
// writer), so nothing is lost. Only if both die together are the masters closed: the
// kernel hangs the terminals up, the servers go on, and their consoles stay dark until
// their next start.
//
// The keeper lives in a session of its own. A service manager must not kill it together
// with the agent (systemd: KillMode=process).
package console
