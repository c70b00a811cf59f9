# What is there, whoever made it and whether or not its server still is.
data "reflejo_backups" "away" {
  target = "s3://backups/orders"
}

check "backups_are_fresh" {
  assert {
    condition     = anytrue([for b in data.reflejo_backups.away.backups : timecmp(timeadd(b.created_at, "26h"), plantimestamp()) > 0])
    error_message = "The newest backup of orders is older than 26 hours."
  }
}
