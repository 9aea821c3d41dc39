#!/usr/bin/env bash
# Stops our servers, then removes what was built; with --all also the tools.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

for file in "$RUN_DIR"/*/pg_config; do
    [[ ! -f $file ]] || "$ROOT/scripts/cluster.sh" drop "$(basename "$(dirname "$file")")"
done
rm -rf "$ROOT/target" "$RUN_DIR" "$TREES"
if [[ ${1:-} == --all ]]; then rm -rf "$PGRX_HOME" "$ROOT/.tools"; fi
