# The network of servers that name none is each host's own.
data "reflejo_network" "alpha" {
  name = "default"
  host = "alpha"
}

output "gateway" {
  value = data.reflejo_network.alpha.gateways["alpha"]
}
