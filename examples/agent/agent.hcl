# The agent's configuration, usually /etc/reflejo/agent.hcl.
# Everything here may be left out; the values below are the defaults, unless said otherwise.
# Check a file with: reflejo agent -config agent.hcl -check

# The host's name, as in its certificate (reflejo://agent/alpha) and in the provider's
# `hosts`. Default: the host name up to its first dot.
name = "alpha"

# Where the API listens, for operators, the provider, Prometheus and other agents.
listen = ":7443"

# The address where VXLAN packets of networks that span hosts arrive. Default: none, then
# this host can't be in a network with others.
underlay_address = "198.18.0.11"

# State that must survive a reboot: servers, networks, images, audit log. One agent per directory.
state_dir = "/var/lib/reflejo"

# Mount points and sockets, gone after a reboot. Others must be allowed to pass through it.
run_dir = "/run/reflejo"

# Directories below which `source = "host:/path"` of an image may lie. Default: none.
image_dirs = ["/var/lib/reflejo/images"]

# The control group that all servers are in, one name. Two agents on one kernel need two.
cgroup_parent = "reflejo"

# Registries that are spoken to without TLS, "host:port". Default: none.
insecure_registries = ["registry.test:5000"]

# Who this agent is. Made with `reflejo pki`; files that change are used at the next
# connection, without a restart.
tls {
  ca_file   = "/etc/reflejo/ca.crt"
  cert_file = "/etc/reflejo/agent.crt"
  key_file  = "/etc/reflejo/agent.key"
}

# The log goes to standard error. Level: trace, debug, info, warn, error, off.
log {
  level = "info"
  json  = false
}

# Where disks are kept. On a file system without reflink (ext4, for one) the agent makes a
# pool file of this size, formats it XFS and mounts it.
pool {
  path = "/var/lib/reflejo/pool" # default: "pool" in state_dir
  size = "200GiB"                # default: four fifths of what is free when it is made
}

# What is never promised to servers: an amount or a share of what there is.
reserve {
  cpu    = "0.5" # cores
  memory = "10%"
  disk   = "0"
}

# How often the cores may be promised. Memory, disk and bandwidth are never promised twice.
overcommit {
  cpu = "1"
}

network {
  # The interface towards the rest of the world, for NAT and published ports.
  # Default: the one of the default route.
  uplink = "eth0"

  # What the uplink can carry, for admission and as the root of shaping. "0": not accounted.
  ingress = "10gbit"
  egress  = "10gbit"

  # The range of the default network, for servers without `network`.
  default_cidr = "10.90.0.0/16"
}

# User and group ids that servers get theirs from, 65,536 each. Nothing else on the host may
# use them (see /etc/subuid); two agents on one kernel need two ranges.
id_range {
  first = 6553600
  count = 268435456
}

# Programs, as names to look up or as paths. lxcfs = "" does without; then /proc inside a
# server shows the host's memory and uptime.
runtime {
  runc  = "runc"
  lxcfs = "lxcfs"
}

# Where the agents of other hosts reach this one: servers that move, backups that are kept
# here. The address is what others are told to dial; default: that of underlay_address.
endpoint {
  listen  = ":7444"
  address = "198.18.0.11:7444"
}

# Other hosts that this one may send backups to (target "host:beta"), one block each.
host "beta" {
  endpoint = "198.18.0.12:7444"
}

# Where backups are kept on this host. dirs: directories below which a target "dir:/path" may
# lie; store: the directory for the backups that other hosts send here. Default: neither.
backup {
  dirs  = ["/var/backups/reflejo"]
  store = "/var/lib/reflejo/backups"
}

# How to reach the bucket of a target "s3://backups/prefix", one block per bucket. The keys
# are read at the agent's start, from files that only root can read. path_style: the bucket
# is in the path of addresses, not in the host's name, as many stores of one's own want it.
s3 "backups" {
  endpoint        = "https://s3.example.org"
  region          = "us-east-1"
  access_key_file = "/etc/reflejo/s3-access"
  secret_key_file = "/etc/reflejo/s3-secret"
  path_style      = false
}
