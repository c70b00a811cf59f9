#!/bin/sh
# Plans, and tells by its exit code what a pipeline should do next:
#   0  nothing to do
#   1  the plan failed
#   2  there are changes; they are in plan.out and, for people and policies, in plan.json
#   3  the plan destroys or replaces something: a person has to say yes (ALLOW_DESTROY=1)
set -u
cd "$(dirname "$0")"

terraform init -input=false >/dev/null || exit 1
terraform plan -input=false -lock-timeout=60s -out=plan.out -detailed-exitcode
case $? in
0) exit 0 ;;
2) ;;
*) exit 1 ;;
esac
terraform show -json plan.out >plan.json || exit 1

# Of a replacement the actions are ["delete","create"]: it counts as well.
if grep -q '"actions":\[[^]]*"delete"' plan.json && [ "${ALLOW_DESTROY:-}" != 1 ]; then
	echo "gate: the plan destroys something; run again with ALLOW_DESTROY=1 if it should" >&2
	exit 3
fi
exit 2
