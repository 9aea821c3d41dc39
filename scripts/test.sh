#!/usr/bin/env bash
# Everything that must hold, in order of cost; stops at the first failure.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
CLUSTER=$ROOT/scripts/cluster.sh

summary=() current="" sockets=""

finish() {
    local code=$?
    trap - EXIT
    "$CLUSTER" stop regress >/dev/null 2>&1 || true
    [[ -z $sockets ]] || rm -rf "$sockets"
    printf '\n=== summary ===\n'
    if [[ ${#summary[@]} -gt 0 ]]; then printf '%s\n' "${summary[@]}"; fi
    if [[ $code -ne 0 ]]; then
        printf 'FAILED  %s\n' "${current:-bootstrap}"
    else
        printf 'all stages passed in %d s\n' "$SECONDS"
    fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# No "if" or "||" around the call of a stage: bash would switch set -e off inside it.
stage() {
    current=$1
    local begun=$SECONDS
    printf '\n=== %s ===\n' "$1"
    shift
    "$@"
    printf -- '--- %d s\n' $((SECONDS - begun))
    summary+=("$(printf 'passed  %-46s %5d s' "$current" $((SECONDS - begun)))")
}

# cargo runs as the server's user here; where that is really another user he needs to reach and write everything.
check_cargo_as_server() {
    server_mode
    [[ $SERVER_MODE == runuser ]] || return 0
    check_server_access "$ROOT"
    as_server cargo --version >/dev/null 2>&1 ||
        die "this system refuses user namespaces to root, and user $SERVER_USER cannot run $(command -v cargo):" \
            "run 'make test' as an ordinary user"
    mkdir -p target
    chown -R "$SERVER_USER:" target .pg/test .pgrx
}

pgrx_tests() {
    local data=()
    check_cargo_as_server
    check_lock
    # The test server's socket lies in its data folder, and a socket's path has at most 107 bytes.
    if [[ $(printf '%s' "${CARGO_TARGET_DIR:-$ROOT/target}/test-pgdata/$PG_MAJOR/.s.PGSQL.32115" | wc -c) -gt 100 ]]; then
        sockets=$(mktemp -d /tmp/audit_db.XXXXXX)
        own_for_server "$sockets"
        data=(--pgdata "$sockets")
    fi
    as_server "${CARGO_PGRX_CMD[@]}" test "pg$PG_MAJOR" "${data[@]}"
}

install_release() {
    check_lock
    "${CARGO_PGRX_CMD[@]}" install --release --pg-config "$TEST_PG_CONFIG" "${FEATURES[@]}"
}

regress() {
    "$CLUSTER" start regress "$TEST_PG_CONFIG" "$@"
    (
        eval "$("$CLUSTER" env regress)"
        PG_CONFIG=$TEST_PG_CONFIG "$ROOT/scripts/installcheck.sh"
    )
}

e2e() {
    cargo test --locked -p audit_db_e2e --no-run
    check_cargo_as_server
    as_server env AUDIT_DB_PG_BIN="$(dirname "$TEST_PG_CONFIG")" cargo test --locked -p audit_db_e2e --no-fail-fast
}

stage bootstrap "$ROOT/scripts/bootstrap.sh"
. "$ROOT/scripts/env.sh"
stage "lint" "$ROOT/scripts/lint.sh"
stage "core: cargo test -p audit_db_core" cargo test --locked -p audit_db_core
stage "in the server: cargo pgrx test pg$PG_MAJOR" pgrx_tests
# After the line above, which has installed its own test build.
stage "release build into the test tree" install_release
"$CLUSTER" drop regress >/dev/null
stage "pg_regress, library preloaded" regress
stage "pg_regress, library not preloaded" regress "shared_preload_libraries = ''"
stage "end to end: real clusters" e2e
