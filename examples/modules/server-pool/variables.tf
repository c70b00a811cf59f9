variable "name" {
  description = "Name of the pool; its servers are called NAME-0, NAME-1 and so on."
  type        = string
}

variable "size" {
  description = "Number of servers."
  type        = number
  default     = 1

  validation {
    condition     = var.size >= 0 && floor(var.size) == var.size
    error_message = "size must be a whole number that is not negative."
  }
}

variable "hosts" {
  description = "Hosts to use in turn. Empty: each server goes where there is most room."
  type        = list(string)
  default     = []
}

variable "image" {
  description = "Id or name of the image."
  type        = string
}

variable "power" {
  description = "running, stopped or suspended; null leaves power to people."
  type        = string
  default     = "running"
}

variable "cores" {
  description = "Processor cores of each server."
  type        = number
  default     = 1
}

variable "memory" {
  description = "Memory of each server."
  type        = string
  default     = "512MiB"
}

variable "disk" {
  description = "Disk of each server."
  type        = string
  default     = "10GiB"
}

variable "network" {
  description = "Id of the network; null is each host's own."
  type        = string
  default     = null
}

variable "bandwidth" {
  description = "Bandwidth of each server, both ways; null is no limit. Needs network."
  type        = string
  default     = null
}

variable "publish" {
  description = "Ports of the hosts that lead to the servers. Needs network, and no two servers of the pool on one host."
  type = map(object({
    host_port = number
    port      = number
    protocol  = optional(string, "tcp")
  }))
  default = {}
}

variable "first_boot" {
  description = "cloud-init user data or a script for each server's first start."
  type        = string
  default     = null
  ephemeral   = true
}

variable "first_boot_version" {
  description = "Version of first_boot; set both or none."
  type        = string
  default     = null
}

variable "labels" {
  description = "Labels of each server."
  type        = map(string)
  default     = {}
}

variable "protected" {
  description = "Whether the servers are protected from deletion."
  type        = bool
  default     = false
}
