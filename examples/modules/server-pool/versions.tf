terraform {
  required_version = ">= 1.11"
  required_providers {
    reflejo = {
      source = "reflejo/reflejo"
    }
  }
}
