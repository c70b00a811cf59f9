// Package provider is the Terraform provider: HCL in, calls to the agents out.
//
// A resource is one file per job: <noun>_resource.go (life), <noun>_schema.go (what a
// user may write), <noun>_model.go (HCL ↔ API), <noun>_plan.go (what is decided at plan
// time). All hosts are behind one provider block: hosts.go dials them when they are needed,
// placement.go chooses among them. Rules that hold everywhere:
//
//   - A configured value stays as it was written; what the agent knows better is computed.
//   - Only a definite "no such object" removes something from state. A host that does not
//     answer leaves the last known state and a warning.
//   - An id is made before the first call and state is set before the first wait.
package provider
