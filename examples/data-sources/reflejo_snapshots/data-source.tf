data "reflejo_snapshots" "all" {}

output "taken_by_policies" {
  value = { for s in data.reflejo_snapshots.all.snapshots : s.name => s.created_at if s.origin == "policy" }
}
