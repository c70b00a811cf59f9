import {
  to = reflejo_network.app
  identity = {
    id = "0d8f5f4e-6f0e-4d0b-9a53-7f2f6c6f1a11"
  }
}
