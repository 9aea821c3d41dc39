# shellcheck shell=bash
# Sourced by the other scripts: where things are, and how to run a server. Sourcing it changes nothing on disk.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
export ROOT

# Servers may run as another user than the one who copies their files.
umask 022

say() { printf '%s\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# --- which PostgreSQL ---------------------------------------------------------------------------------------------

if [[ -n ${PG_CONFIG:-} && -z ${PG_MAJOR:-} ]]; then
    PG_MAJOR=$("$PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
fi
export PG_MAJOR=${PG_MAJOR:-15}

# Debian's /usr/bin/pg_config is libpq's and says nothing of the server where only libpq-dev is installed.
find_pg_config() {
    if [[ -n ${PG_CONFIG:-} ]]; then
        printf '%s\n' "$PG_CONFIG"
    elif [[ -x /usr/lib/postgresql/$PG_MAJOR/bin/pg_config ]]; then
        printf '%s\n' "/usr/lib/postgresql/$PG_MAJOR/bin/pg_config"
    else
        command -v pg_config || true
    fi
}

# --- folders of this checkout -------------------------------------------------------------------------------------

RUN_DIR=$ROOT/.run     # clusters, their logs, test results
TREES=$ROOT/.pg        # private copies of the server
export PGRX_HOME=$ROOT/.pgrx
# shellcheck disable=SC2034  # used by the scripts that source this file
CARGO_PGRX_VERSION=0.18.1

# Two copies, because a test build must not replace the library under the demo's running server.
# make_tree (bootstrap.sh) writes where each copy's pg_config came to lie.
tree_pg_config() {
    if [[ -f $TREES/$1/pg_config.path ]]; then
        cat "$TREES/$1/pg_config.path"
    else
        printf '%s\n' "$TREES/$1/lib/postgresql/$PG_MAJOR/bin/pg_config"
    fi
}
use_trees() {
    DEMO_PG_CONFIG=$(tree_pg_config demo)
    TEST_PG_CONFIG=$(tree_pg_config test)
    export DEMO_PG_CONFIG TEST_PG_CONFIG
}
use_trees

# --- Rust ---------------------------------------------------------------------------------------------------------

# as_server changes HOME, so the toolchain's folders must not depend on it.
export CARGO_HOME=${CARGO_HOME:-$HOME/.cargo}
if [[ -z ${RUSTUP_HOME:-} && -d $HOME/.rustup ]]; then export RUSTUP_HOME=$HOME/.rustup; fi
export PATH="$ROOT/.tools/bin:$PATH"
# A toolchain installed a minute ago is not yet on the PATH of this shell.
if ! command -v cargo >/dev/null && [[ -x $CARGO_HOME/bin/cargo ]]; then export PATH="$PATH:$CARGO_HOME/bin"; fi

# The private copy is called by its path: cargo would prefer another version in the user's own cargo folder.
# shellcheck disable=SC2034
if [[ -x $ROOT/.tools/bin/cargo-pgrx ]]; then
    CARGO_PGRX_CMD=("$ROOT/.tools/bin/cargo-pgrx" pgrx)
else
    CARGO_PGRX_CMD=(cargo pgrx)
fi
# shellcheck disable=SC2034
FEATURES=(--no-default-features --features "pg$PG_MAJOR")

# cargo-pgrx takes no --locked; asking cargo beforehand has the same effect.
check_lock() {
    local host
    host=$(rustc -vV | sed -n 's/^host: //p')
    (cd "$ROOT" && cargo metadata --locked --format-version 1 --filter-platform "$host" >/dev/null) ||
        die "Cargo.lock does not fit Cargo.toml"
}

# --- running servers ----------------------------------------------------------------------------------------------

# A backtrace in a server's environment would show up in every client's error DETAIL.
unset RUST_BACKTRACE

# user: as we are. unshare: root, seen by the server as "postgres". runuser: root, really another user.
# SERVER_MODE=runuser in the environment forces the last.
server_mode() {
    [[ -z ${SERVER_USER:-} ]] || return 0
    if [[ $(id -u) -ne 0 ]]; then
        SERVER_USER=$(id -un) SERVER_MODE=user
    else
        SERVER_USER=postgres
        id postgres >/dev/null 2>&1 || SERVER_USER=nobody
        if [[ -z ${SERVER_MODE:-} ]]; then
            SERVER_MODE=runuser
            if unshare --user --map-user="$(id -u "$SERVER_USER")" --map-group="$(id -g "$SERVER_USER")" \
                true 2>/dev/null; then SERVER_MODE=unshare; fi
        fi
    fi
}

# Runs a command as a user that PostgreSQL accepts: it refuses root.
as_server() {
    server_mode
    case $SERVER_MODE in
        user) env -u RUST_BACKTRACE USER="$SERVER_USER" "$@" ;;
        unshare)
            # For the kernel's file checks we stay root: root's toolchain and this checkout remain usable.
            env -u RUST_BACKTRACE USER="$SERVER_USER" HOME="$RUN_DIR" \
                unshare --user --map-user="$(id -u "$SERVER_USER")" --map-group="$(id -g "$SERVER_USER")" "$@"
            ;;
        runuser)
            runuser -u "$SERVER_USER" -- env -u RUST_BACKTRACE USER="$SERVER_USER" HOME="$RUN_DIR" "$@"
            ;;
        *) die "unknown SERVER_MODE '$SERVER_MODE' (user, unshare, runuser)" ;;
    esac
}

# As root, gives files to the user whom as_server's commands are for the kernel.
own_for_server() {
    server_mode
    case $SERVER_MODE in
        unshare) chown -R 0:0 "$@" ;;
        runuser) chown -R "$SERVER_USER:" "$@" ;;
    esac
}

# Where user namespaces are refused the server is a real other user, who must be able to reach this folder.
check_server_access() {
    server_mode
    [[ $SERVER_MODE == runuser ]] || return 0
    runuser -u "$SERVER_USER" -- test -x "$1" ||
        die "user $SERVER_USER cannot reach $1, and this system refuses user namespaces to root:" \
            "move the checkout to a folder that everyone may enter, or run as an ordinary user"
}
