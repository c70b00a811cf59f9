terraform {
  required_version = ">= 1.11"
  required_providers {
    reflejo = {
      source = "reflejo/reflejo"
    }
  }
}

provider "reflejo" {
  hosts = {
    alpha = { address = "198.18.0.11:7443" }
    beta  = { address = "198.18.0.12:7443" }
    gamma = { address = "198.18.0.13:7443" }
  }
  ca_file   = "pki/ca.crt"
  cert_file = "pki/ci.crt"
  key_file  = "pki/ci.key"
}
