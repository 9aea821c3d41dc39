#!/usr/bin/env bash
# A throw-away cluster of our own, reachable through a socket only.
#   cluster.sh start NAME PG_CONFIG [postgresql.conf line]...   idempotent; restarts where lines or library changed
#   cluster.sh stop NAME | drop NAME                            drop also deletes the data
#   cluster.sh status NAME                                      exit code 0: running, 3: not
#   cluster.sh psql NAME [psql argument]...
#   cluster.sh env NAME                                         PGHOST, PGPORT, PGUSER and PATH for eval
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# Whatever server the caller normally uses, it is not this one.
unset PGDATA PGHOST PGHOSTADDR PGPORT PGUSER PGDATABASE PGSERVICE PGOPTIONS

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
[[ $# -ge 2 && $2 =~ ^[A-Za-z0-9_-]+$ ]] || usage
ACTION=$1 NAME=$2
shift 2
HERE=$RUN_DIR/$NAME
DATA=$HERE/data

bindir() {
    [[ -f $HERE/pg_config ]] || die "cluster $NAME was never started"
    dirname "$(<"$HERE/pg_config")"
}

# A process id left from before a reboot or a kill -9 may belong to anything by now: ask where it works.
postmaster_pid() {
    local pid
    [[ -f $DATA/postmaster.pid ]] || return 1
    pid=$(head -n 1 "$DATA/postmaster.pid")
    [[ $pid =~ ^[0-9]+$ && $(readlink "/proc/$pid/cwd" 2>/dev/null) == "$DATA" ]] && printf '%s\n' "$pid"
}
running() { postmaster_pid >/dev/null; }

socket() { cat "$HERE/socket"; }
port() { cat "$HERE/port"; }

remove_socket() {
    [[ -f $HERE/socket ]] || return 0
    local dir
    dir=$(socket)
    # Only what is still ours: after a reboot the name may be somebody else's.
    if [[ $dir == /tmp/audit_db.?????? && -d $dir && ! -L $dir ]] && { [[ -O $dir ]] || [[ $(id -u) -eq 0 ]]; }; then
        rm -rf "$dir"
    fi
    rm -f "$HERE/socket"
}

# The same port for the same checkout and name, so that a printed psql command differs little from the last one.
pick_port() {
    local port
    port=$((54000 + $(printf '%s' "$ROOT/$NAME" | cksum | cut -d ' ' -f 1) % 1000))
    while (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    printf '%s\n' "$port"
}

library_sum() {
    local file
    file=$("$(<"$HERE/pg_config")" --pkglibdir)/audit_db.so
    if [[ -f $file ]]; then cksum <"$file"; else echo none; fi
}

init_data() {
    local bin=$1 major
    major=$("$bin/postgres" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/')
    # Without the marker an initdb was interrupted.
    if [[ -f $HERE/initialised && -f $DATA/PG_VERSION && $(<"$DATA/PG_VERSION") == "$major" ]]; then return; fi
    rm -rf "$DATA" "$HERE/initialised"
    own_for_server "$HERE"
    as_server "$bin/initdb" -D "$DATA" -U postgres -A trust --no-locale -E UTF8 >"$HERE/initdb.log" 2>&1 ||
        { cat "$HERE/initdb.log" >&2; die "initdb failed"; }
    printf "include 'audit_db.conf'\n" >>"$DATA/postgresql.conf"
    touch "$HERE/initialised"
}

# Children of a server killed with -9 may still be there for a moment, and write.
wait_for_orphans() {
    local try
    for try in {1..40}; do
        find /proc -maxdepth 2 -name cwd -printf '%l\n' 2>/dev/null | grep -qxF "$DATA" || return 0
        sleep 0.5
    done
    die "processes of a killed server still work in $DATA ($((try / 2)) s)"
}

server_start() {
    as_server "$1/pg_ctl" -D "$DATA" -l "$HERE/log" -w -t 60 start >"$HERE/pg_ctl.log" 2>&1 && return
    cat "$HERE/pg_ctl.log" >&2
    tail -n 20 "$HERE/log" >&2
    die "cluster $NAME did not start; log: $HERE/log"
}

server_stop() {
    local bin
    bin=$(bindir)
    as_server "$bin/pg_ctl" -D "$DATA" -w -t 60 -m fast stop >"$HERE/pg_ctl.log" 2>&1 ||
        as_server "$bin/pg_ctl" -D "$DATA" -w -t 30 -m immediate stop >>"$HERE/pg_ctl.log" 2>&1 ||
        { cat "$HERE/pg_ctl.log" >&2; die "cluster $NAME did not stop"; }
}

start() {
    [[ $# -ge 1 && -x $1 ]] || usage
    local config=$1 bin wanted note=""
    shift
    bin=$("$config" --bindir)
    mkdir -p "$HERE"
    check_server_access "$HERE"
    # Later lines win.
    wanted=$(printf '%s\n' "$config" "shared_preload_libraries = 'audit_db'" "$@")
    if running; then
        # A socket folder can be swept away from /tmp under a running server: nobody could connect any more.
        if [[ -f $HERE/socket && -S $(socket)/.s.PGSQL.$(port) && -f $HERE/wanted && $(<"$HERE/wanted") == "$wanted" &&
            -f $HERE/library && $(<"$HERE/library") == "$(library_sum)" ]]; then
            say "cluster $NAME: already running"
            return
        fi
        note=" (restarted: settings or library changed)"
        server_stop
    fi
    printf '%s\n' "$config" >"$HERE/pg_config"
    # With the postmaster and its children gone the file says nothing but a process id that may be reused by now.
    wait_for_orphans
    rm -f "$DATA/postmaster.pid"
    init_data "$bin"
    remove_socket
    mktemp -d /tmp/audit_db.XXXXXX >"$HERE/socket"
    pick_port >"$HERE/port"
    {
        say "# Written at every start."
        say "listen_addresses = ''"
        say "unix_socket_directories = '$(socket)'"
        say "port = $(port)"
        printf '%s\n' "$wanted" | tail -n +2
    } >"$DATA/audit_db.conf"
    printf '%s\n' "$wanted" >"$HERE/wanted"
    library_sum >"$HERE/library"
    [[ ! -f $HERE/log ]] || mv "$HERE/log" "$HERE/log.previous"
    : >"$HERE/log"
    own_for_server "$HERE" "$(socket)"
    server_start "$bin"
    say "cluster $NAME: started$note"
}

stop() {
    if [[ ! -d $HERE ]]; then
        say "cluster $NAME: not there"
    elif running; then
        server_stop
        say "cluster $NAME: stopped"
    else
        say "cluster $NAME: not running"
    fi
    remove_socket
}

case $ACTION in
    start) start "$@" ;;
    stop) stop ;;
    drop)
        stop
        rm -rf "$HERE"
        ;;
    status)
        if running; then
            say "cluster $NAME: running, pid $(postmaster_pid), socket $(socket), port $(port), log $HERE/log"
        else
            say "cluster $NAME: not running"
            exit 3
        fi
        ;;
    psql)
        running || die "cluster $NAME is not running"
        exec "$(bindir)/psql" -h "$(socket)" -p "$(port)" -U postgres "$@"
        ;;
    env)
        running || die "cluster $NAME is not running"
        # shellcheck disable=SC2016  # the reader's PATH, not ours
        printf 'export PGHOST=%q PGPORT=%q PGUSER=postgres PATH=%q:"$PATH"\n' "$(socket)" "$(port)" "$(bindir)"
        ;;
    *) usage ;;
esac
