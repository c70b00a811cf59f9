package testbed

func (n names) agentConfig(host string, index int) string { return "" }
