#!/usr/bin/env bash
# Release build into the server that PG_CONFIG names (default: the system's PostgreSQL $PG_MAJOR).
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

"$ROOT/scripts/bootstrap.sh"
. "$ROOT/scripts/env.sh"
config=$(find_pg_config)
library=$("$config" --pkglibdir)
sudo=()
if [[ ! -w $library || ! -w $("$config" --sharedir)/extension ]]; then
    command -v sudo >/dev/null || die "cannot write to $library and there is no sudo: run 'make install' as root"
    say "sudo is needed to write to $library; the build itself runs without it"
    sudo=(--sudo)
fi
check_lock
"${CARGO_PGRX_CMD[@]}" install --release --pg-config "$config" "${FEATURES[@]}" "${sudo[@]}"
cat <<TEXT

Installed. Add to postgresql.conf and restart the server:

    shared_preload_libraries = 'audit_db'

then, in each database: CREATE EXTENSION audit_db;
TEXT
