#!/usr/bin/env bash
# bench.sh NAME: release build, the peers it is compared with, then the benchmark NAME of bench/.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
[[ $# -eq 1 ]] || die "usage: bench.sh NAME"

# A peer from Debian's package postgresql-MAJOR-$1, whose extension is $2. Unpacked into the private copy of the server only, so
# nothing of the machine changes.
get_peer() {
    local package=postgresql-$PG_MAJOR-$1 extension=$2 share library folder
    share=$("$TEST_PG_CONFIG" --sharedir) library=$("$TEST_PG_CONFIG" --pkglibdir)
    if [[ -f $share/extension/$extension.control ]]; then
        say "$extension     already there"
        return
    fi
    [[ $PG_MAJOR == 15 ]] || die "the calls of this benchmark are those of the $extension that Debian has for PostgreSQL 15"
    command -v apt-get >/dev/null || die "$extension comes from Debian's package $package"
    folder=$(mktemp -d)
    (cd "$folder" && apt-get -q download "$package" >/dev/null 2>&1 &&
        dpkg-deb -x ./*.deb .) || die "cannot get Debian's package $package (try: apt-get update)"
    cp "$folder/usr/lib/postgresql/$PG_MAJOR/lib/"*.so "$library/"
    cp "$folder/usr/share/postgresql/$PG_MAJOR/extension/"* "$share/extension/"
    rm -rf "$folder"
    say "$extension     unpacked into ${share#"$ROOT"/}"
}

# What the benchmark "capture" needs and the server's packages do not bring; looked for before anything is built.
check_valgrind() {
    command -v valgrind >/dev/null ||
        die "valgrind counts the instructions of this benchmark: apt-get install -y --no-install-recommends valgrind"
}

# PostgreSQL's own modules, which Debian has in the server's package.
check_contrib() {
    local module library
    library=$("$TEST_PG_CONFIG" --pkglibdir)
    for module in "$@"; do
        [[ -f $library/$module.so ]] || die "$module is not in $library (it is one of PostgreSQL's contrib modules)"
    done
}

[[ $1 != capture ]] || check_valgrind
"$ROOT/scripts/bootstrap.sh"
. "$ROOT/scripts/env.sh"
case $1 in
    partitions) get_peer partman pg_partman ;;
    jobs) get_peer cron pg_cron ;;
    capture) check_contrib pg_stat_statements auto_explain ;;
esac
check_lock
"${CARGO_PGRX_CMD[@]}" install --release --pg-config "$TEST_PG_CONFIG" "${FEATURES[@]}"
cargo build --locked --release -p audit_db_bench --bin "$1"
check_server_access "$ROOT"
as_server env AUDIT_DB_PG_BIN="$(dirname "$TEST_PG_CONFIG")" "${CARGO_TARGET_DIR:-$ROOT/target}/release/$1"
