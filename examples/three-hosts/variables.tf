variable "debian" {
  description = "Source of a Debian image that boots systemd."
  type        = string
}

variable "debian_next" {
  description = "Source of an image with the next release."
  type        = string
}

variable "hello" {
  description = "Source of an image whose program answers on port 80."
  type        = string
}

# Change these and apply again: the server changes while it runs.
variable "cores" {
  description = "Cores of server debian-alpha."
  type        = number
  default     = 0.5
}

variable "memory" {
  description = "Memory of server debian-alpha."
  type        = string
  default     = "256MiB"
}

variable "disk" {
  description = "Disk of server debian-alpha."
  type        = string
  default     = "10GiB"
}

variable "egress" {
  description = "Bandwidth from server debian-alpha."
  type        = string
  default     = "50mbit"
}

variable "power" {
  description = "Power of server debian-alpha: running, stopped or suspended."
  type        = string
  default     = "running"
}
