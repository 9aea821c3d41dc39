#!/usr/bin/env bash
# Gets everything a build needs: packages, cargo-pgrx, two private copies of the server. Seconds when all is there.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

step() { printf '%-14s %s\n' "$1" "$2"; }

check_rust() {
    local have=0.0.0
    if command -v rustc >/dev/null && command -v cargo >/dev/null; then
        have=$(cd "$ROOT" && rustc --version | awk '{print $2}')
    fi
    if printf '1.95.0\n%s\n' "${have%%-*}" | sort -V -C; then
        step rust "already there: $have"
        return
    fi
    [[ $have == 0.0.0 ]] && have=none
    cat >&2 <<TEXT
error: Rust 1.95 or newer is needed (found: $have); Debian's own is too old. Install it with

    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c rustfmt -c clippy

or, where rustup is already installed,

    rustup update stable && rustup component add rustfmt clippy

then run this again.
TEXT
    command -v curl >/dev/null || say "(curl itself: apt-get install -y --no-install-recommends curl ca-certificates)" >&2
    exit 1
}

# Looks for the files, not for package names, so that a server from elsewhere (PG_CONFIG=...) serves as well.
missing_packages() {
    local config bin
    command -v gcc >/dev/null || command -v cc >/dev/null || echo gcc
    [[ -f /usr/include/stdio.h ]] || echo libc6-dev
    command -v make >/dev/null || echo make
    [[ $(id -u) -ne 0 ]] || command -v unshare >/dev/null || echo util-linux
    config=$(find_pg_config)
    if [[ -n $config && -x $config ]]; then bin=$("$config" --bindir); else bin=/nowhere; fi
    [[ -x $bin/postgres && -x $bin/initdb && -x $bin/psql ]] || echo "postgresql-$PG_MAJOR"
    # server-dev also brings libclang, which reads the server's headers for the build.
    [[ $bin != /nowhere && -f $("$config" --includedir-server)/postgres.h && -f $("$config" --pgxs) ]] &&
        { [[ -n ${LIBCLANG_PATH:-} ]] || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null ||
            ldconfig -p 2>/dev/null | grep -q libclang; } || echo "postgresql-server-dev-$PG_MAJOR"
}

check_packages() {
    local missing=() sudo=() line
    mapfile -t missing < <(missing_packages)
    if [[ ${#missing[@]} -eq 0 ]]; then
        step packages "already there"
        return
    fi
    line="apt-get install -y --no-install-recommends ${missing[*]}"
    command -v apt-get >/dev/null || die "missing: ${missing[*]} (these are Debian's names)"
    if [[ $(id -u) -ne 0 ]]; then
        if command -v sudo >/dev/null && { sudo -n true 2>/dev/null || { [[ -t 0 ]] && sudo true; }; }; then
            sudo=(sudo)
        else
            say "error: packages are missing and sudo is not available. As root, run" >&2
            say "    $line" >&2
            exit 1
        fi
    fi
    step packages "installing: ${missing[*]}"
    # The lists of a fresh image are empty or old: once more after an update.
    local apt=("${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get)
    # Descriptor 9 is our lock: a server that apt starts must not inherit it.
    {
        "${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
            { "${apt[@]}" update -q >/dev/null &&
                "${apt[@]}" install -y -q --no-install-recommends "${missing[@]}" >/dev/null; }
    } 9>&- ||
        die "'$line' failed (a release with another PostgreSQL? try PG_MAJOR=16, 17 or 18)"
    mapfile -t missing < <(missing_packages)
    [[ ${#missing[@]} -eq 0 ]] || die "still missing after installation: ${missing[*]}"
}

check_pg_config() {
    local major
    SYSTEM_PG_CONFIG=$(find_pg_config)
    major=$("$SYSTEM_PG_CONFIG" --version | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
    [[ $major == "$PG_MAJOR" ]] ||
        die "$SYSTEM_PG_CONFIG is of PostgreSQL $major, wanted $PG_MAJOR (set PG_MAJOR or PG_CONFIG)"
    step postgresql "$("$SYSTEM_PG_CONFIG" --version), $SYSTEM_PG_CONFIG"
}

cargo_pgrx_version() { { "$@" --version 2>/dev/null || true; } | awk '{print $2}'; }

check_cargo_pgrx() {
    local how
    for how in "$ROOT/.tools/bin/cargo-pgrx pgrx" "cargo pgrx"; do
        # shellcheck disable=SC2086  # two words
        [[ $(cargo_pgrx_version $how) == "$CARGO_PGRX_VERSION" ]] || continue
        step cargo-pgrx "already there: $CARGO_PGRX_VERSION"
        return
    done
    step cargo-pgrx "building $CARGO_PGRX_VERSION into .tools (once, some minutes)"
    # A debug build without downloads over https: half the time, and it needs no OpenSSL. A target folder
    # of our own, so that an interrupted build leaves nothing in /tmp and goes on where it stopped.
    (cd "$ROOT" && CARGO_TARGET_DIR=$ROOT/.tools/build cargo install cargo-pgrx --version "$CARGO_PGRX_VERSION" \
        --locked --debug --no-default-features --quiet --force --root "$ROOT/.tools")
    rm -rf "$ROOT/.tools/build"
    CARGO_PGRX_CMD=("$ROOT/.tools/bin/cargo-pgrx" pgrx)
}

# PostgreSQL finds its folders relative to its own binary: a copy with the same layout works anywhere.
make_tree() {
    local name=$1 tree=$TREES/$1 new=$TREES/$1.new config=$SYSTEM_PG_CONFIG
    local bin lib share include prefix dir stamp
    bin=$("$config" --bindir) lib=$("$config" --pkglibdir) share=$("$config" --sharedir)
    include=$("$config" --includedir)
    # Also a server updated in place (15.20 to 15.21) needs a new copy.
    stamp="$bin $("$bin/postgres" --version) $(stat -Lc %Y "$bin/postgres") $tree"
    if [[ -f $tree/stamp && $(<"$tree/stamp") == "$stamp" ]]; then
        step "tree $name" "already there"
        return
    fi
    for dir in "$RUN_DIR"/*/pg_config; do
        [[ -f $dir && $(<"$dir") == "$tree"/* ]] || continue
        "$ROOT/scripts/cluster.sh" stop "$(basename "$(dirname "$dir")")" >/dev/null
    done
    prefix=$bin
    while [[ $lib/ != "$prefix"/* || $share/ != "$prefix"/* || $include/ != "$prefix"/* ]]; do
        prefix=$(dirname "$prefix")
        [[ $prefix != / ]] || die "$config: binaries and data share no folder; cannot copy this server"
    done
    rm -rf "$new"
    for dir in "$bin" "$lib" "$share"; do
        dir=${dir#"$prefix"}
        mkdir -p "$new$dir"
        cp -aL --no-preserve=ownership "$prefix$dir/." "$new$dir/"
    done
    # Headers are read only while building.
    dir=${include#"$prefix"}
    if [[ ! -e $new$dir ]]; then
        mkdir -p "$(dirname "$new$dir")"
        ln -s "$include" "$new$dir"
    fi
    # What the system has installed of ourselves is not what is being built.
    rm -f "$new${lib#"$prefix"}/audit_db.so" "$new${share#"$prefix"}/extension/audit_db"{--*.sql,.control}
    printf '%s\n' "$tree${bin#"$prefix"}/pg_config" >"$new/pg_config.path"
    printf '%s\n' "$stamp" >"$new/stamp"
    rm -rf "$tree"
    mv "$new" "$tree"
    step "tree $name" "copied $prefix (${bin#"$prefix"/}, ...) to ${tree#"$ROOT"/}"
}

check_pgrx_home() {
    mkdir -p "$PGRX_HOME"
    if grep -qsxF "pg$PG_MAJOR = \"$TEST_PG_CONFIG\"" "$PGRX_HOME/config.toml"; then
        step pgrx "already there: .pgrx/config.toml"
        return
    fi
    "${CARGO_PGRX_CMD[@]}" init "--pg$PG_MAJOR" "$TEST_PG_CONFIG" >"$RUN_DIR/pgrx-init.log" 2>&1 ||
        { cat "$RUN_DIR/pgrx-init.log" >&2; die "cargo pgrx init failed"; }
    step pgrx "wrote .pgrx/config.toml"
}

[[ -w $ROOT ]] || die "cannot write to $ROOT"
mkdir -p "$RUN_DIR" "$TREES"
# make demo and make test at the same time must not prepare the same folders twice.
if command -v flock >/dev/null; then
    exec 9>"$RUN_DIR/bootstrap.lock"
    flock 9
fi
check_rust
check_packages
check_pg_config
check_cargo_pgrx
make_tree demo
make_tree test
use_trees
check_pgrx_home
