# What a pipeline applies. Hosts and certificate come from the environment: REFLEJO_HOSTS,
# REFLEJO_CA_FILE, REFLEJO_CERT_FILE, REFLEJO_KEY_FILE.
terraform {
  required_version = ">= 1.11"
  required_providers {
    reflejo = {
      source = "reflejo/reflejo"
    }
  }
}

provider "reflejo" {}

variable "image" {
  description = "Id or name of the image."
  type        = string
  default     = "debian"
}

module "web" {
  source = "../modules/server-pool"
  name   = "web"
  size   = 2
  image  = var.image
}

output "addresses" {
  description = "Addresses of the servers."
  value       = module.web.addresses
}
