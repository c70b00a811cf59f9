variable "debian" {
  description = "Where the image comes from."
  type        = string
}

variable "host" {
  description = "The host that the server is on."
  type        = string
  default     = "alpha"
}

variable "release" {
  description = "The release that is about to be rolled out."
  type        = string
  default     = "1-4"
}

variable "backup" {
  description = "Whether the snapshot before the release is also backed up."
  type        = bool
  default     = true
}

variable "trial" {
  description = "Whether there is a clone to try the release on."
  type        = bool
  default     = false
}

variable "restore_from" {
  description = "Id of a snapshot of the server to put back in place of its disk."
  type        = string
  default     = null
}
