#!/usr/bin/env bash
# bench.sh NAME: release build, the peers it is compared with, then the benchmark NAME of bench/.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
[[ $# -eq 1 ]] || die "usage: bench.sh NAME"

# Unpacked into the private copy of the server only, so nothing of the machine changes.
get_partman() {
    local share library folder
    share=$("$TEST_PG_CONFIG" --sharedir) library=$("$TEST_PG_CONFIG" --pkglibdir)
    if [[ -f $share/extension/pg_partman.control ]]; then
        say "pg_partman     already there"
        return
    fi
    [[ $PG_MAJOR == 15 ]] || die "the calls of this benchmark are those of pg_partman 4.7, which Debian has for PostgreSQL 15"
    command -v apt-get >/dev/null || die "pg_partman comes from Debian's package postgresql-$PG_MAJOR-partman"
    folder=$(mktemp -d)
    (cd "$folder" && apt-get -q download "postgresql-$PG_MAJOR-partman" >/dev/null 2>&1 &&
        dpkg-deb -x ./*.deb .) || die "cannot get Debian's package postgresql-$PG_MAJOR-partman (try: apt-get update)"
    cp "$folder/usr/lib/postgresql/$PG_MAJOR/lib/"*.so "$library/"
    cp "$folder/usr/share/postgresql/$PG_MAJOR/extension/"* "$share/extension/"
    rm -rf "$folder"
    say "pg_partman     unpacked into ${share#"$ROOT"/}"
}

"$ROOT/scripts/bootstrap.sh"
. "$ROOT/scripts/env.sh"
[[ $1 != partitions ]] || get_partman
check_lock
"${CARGO_PGRX_CMD[@]}" install --release --pg-config "$TEST_PG_CONFIG" "${FEATURES[@]}"
cargo build --locked --release -p audit_db_bench --bin "$1"
check_server_access "$ROOT"
as_server env AUDIT_DB_PG_BIN="$(dirname "$TEST_PG_CONFIG")" "${CARGO_TARGET_DIR:-$ROOT/target}/release/$1"
