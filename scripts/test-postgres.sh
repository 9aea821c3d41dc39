#!/usr/bin/env bash
# PostgreSQL's own regression suite (src/test/regress) without audit_db, then with it preloaded and capturing whatever it can:
# the same tests must pass and every result must be the same to the byte. A test that fails in both runs in the same way
# is reported and is not our failure. The suite comes from the source package of exactly the installed server's version.
#   PG_SOURCE=FOLDER      an unpacked source of that version instead
#   CAPTURE='LINES'       lines of postgresql.conf for the second run instead of those below; empty: preloaded, no more
#   MAX_CONNECTIONS=4     tests at the same time
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
[[ -z ${PG_SOURCE:-} ]] || PG_SOURCE=$(realpath "$PG_SOURCE")
cd "$ROOT"

CAPTURE=${CAPTURE-"audit_db.slow_query_threshold = 0
audit_db.slow_query_plan = analyze
audit_db.query_stats = on
audit_db.slow_query_parameters = full"}
MAX_CONNECTIONS=${MAX_CONNECTIONS:-4}
# What these print is chance, which the suite itself allows for: they are compared by pass and fail only.
BY_CHANCE=(random)

CLUSTER=$ROOT/scripts/cluster.sh
NAME=suite
OUT=$RUN_DIR/postgres-regress
# What PostgreSQL's own "make check" gives its server; compute_query_id as where it runs the suite with a library that wants it.
SERVER=("fsync = off" "max_prepared_transactions = 2" "compute_query_id = regress" "log_line_prefix = '%m [%p] %b '")
temp=""
captured=""

finish() {
    local code=$?
    trap - EXIT
    "$CLUSTER" drop "$NAME" >/dev/null 2>&1 || true
    [[ -z $temp ]] || rm -rf "$temp"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the suite ----------------------------------------------------------------------------------------------------

source_version() { sed -n "s/^PACKAGE_VERSION='\(.*\)'$/\1/p" "$1/configure" 2>/dev/null || true; }

# apt with the machine's repositories, asked for sources, and folders and lists of its own: nothing of the machine changes.
download_source() {
    local wanted=$1 file folder=$temp/apt
    command -v apt-get >/dev/null || die "the suite comes from Debian's source package: without apt-get set PG_SOURCE"
    mkdir -p "$folder"/{lists/partial,cache/archives/partial,sources}
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [[ -f $file && -r $file ]] || continue
        case $file in
            *.list) sed -nE 's/^[[:space:]]*deb(-src)?[[:space:]]/deb-src /p' "$file" >"$folder/sources/${file##*/}" ;;
            *) sed -E 's/^Types:.*/Types: deb-src/I' "$file" >"$folder/sources/${file##*/}" ;;
        esac
    done
    # Hooks of an update are for the machine's own lists.
    {
        apt-config dump | grep -vE '^APT::Update::(Pre|Post)-Invoke'
        say "Dir::Etc::main \"/dev/null\"; Dir::Etc::parts \"/dev/null\";"
        say "Dir::Etc::sourcelist \"/dev/null\"; Dir::Etc::sourceparts \"$folder/sources\";"
        say "Dir::State::lists \"$folder/lists\"; Dir::Cache \"$folder/cache\";"
    } >"$folder/apt.conf"
    # A repository that does not answer matters only if it is the one that has the package.
    (
        cd "$folder"
        export APT_CONFIG=$folder/apt.conf
        apt-get -q update || true
        apt-get -q source --download-only "$wanted"
    ) >"$folder/log" 2>&1 || {
        cat "$folder/log" >&2
        die "cannot get the source package $wanted: where the server is not the newest of its release, update it," \
            "or set PG_SOURCE"
    }
}

unpack_source() {
    local archive tool
    archive=$(find "$temp/apt" -maxdepth 1 -name '*.orig.tar.*' ! -name '*.asc')
    case $archive in
        *.bz2) tool=bzip2 ;;
        *.xz) tool=xz ;;
        *) tool=gzip ;;
    esac
    command -v "$tool" >/dev/null || die "$tool is missing, which unpacks ${archive##*/} (Debian's package ${tool/%xz/xz-utils})"
    rm -rf "$1.new"
    mkdir -p "$1.new"
    # Debian's patches touch nothing of this.
    tar -xf "$archive" -C "$1.new" --no-same-owner --strip-components=1 --wildcards --no-wildcards-match-slash \
        '*/configure' '*/src/test/regress' || die "cannot unpack ${archive##*/}"
    rm -rf "$1"
    mv "$1.new" "$1"
}

# Sets SUITE to the folder src/test/regress of the server's version.
get_suite() {
    local server version folder
    server=$("$TEST_PG_CONFIG" --version)
    version=$(awk '{print $2}' <<<"$server")
    folder=${PG_SOURCE:-$RUN_DIR/postgres-source/$version}
    if [[ -z ${PG_SOURCE:-} && $(source_version "$folder") != "$version" ]]; then
        # As in "PostgreSQL 15.18 (Debian 15.18-0+deb12u1)"; +b1 is a rebuild of the same source.
        [[ $server =~ \((Debian|Ubuntu)\ ([^\ \)]+)\) ]] ||
            die "the server is $server, which is not of a Debian package: set PG_SOURCE to an unpacked source of it"
        server=$(sed -E 's/\+b[0-9]+$//' <<<"${BASH_REMATCH[2]}")
        say "suite          getting the source package postgresql-$PG_MAJOR $server"
        download_source "postgresql-$PG_MAJOR=$server"
        unpack_source "$folder"
    fi
    [[ $(source_version "$folder") == "$version" ]] ||
        die "$folder is not a source of PostgreSQL $version (found: $(source_version "$folder"))"
    SUITE=$folder/src/test/regress
    [[ -f $SUITE/parallel_schedule && -f $SUITE/regress.c ]] || die "$SUITE has no parallel_schedule or no regress.c"
    say "suite          of PostgreSQL $version, in ${SUITE#"$ROOT"/}"
}

# The suite's functions in C, and the two modules that it borrows from contrib.
build_library() {
    local cc name flags=() log=$temp/cc.log
    cc=$(command -v cc || command -v gcc) || die "no C compiler"
    read -ra flags <<<"$("$TEST_PG_CONFIG" --cppflags)"
    mkdir -p "$OUT/lib"
    "$cc" "${flags[@]}" -O2 -fPIC -shared -I"$("$TEST_PG_CONFIG" --includedir-server)" -o "$OUT/lib/regress.so" \
        "$SUITE/regress.c" >"$log" 2>&1 || { cat "$log" >&2; die "cannot compile the suite's regress.c"; }
    for name in autoinc refint; do
        cp "$("$TEST_PG_CONFIG" --pkglibdir)/$name.so" "$OUT/lib/" ||
            die "the server has no $name.so, which the suite needs (Debian's package postgresql-contrib or" \
                "postgresql-$PG_MAJOR)"
    done
}

# --- a run --------------------------------------------------------------------------------------------------------

# "name verdict" for each test, from what pg_regress prints: up to 15 "name ... ok 12 ms", since 16 "ok 1 - name 12 ms".
# A failure that the suite's schedule ignores (random, up to 16) is none.
verdicts() {
    sed -nE -e 's/[[:space:]]+[0-9]+ ms$//' \
        -e 's/^(not )?ok +[0-9]+ +[-+] +([^ ]+)( .*)?$/\2 \1ok\3/p' \
        -e 's/ failed \(ignored\)$/ ok/' -e 's/^(test)? +([^ ]+) +\.\.\. (.*)$/\2 \3/p' "$1" | LC_ALL=C sort
}

# A setting that this build does not know would leave the run as good as empty.
check_capture() {
    local line name
    while read -r line; do
        name=$(sed -E 's/[[:space:]]*(#.*)?$//; s/[[:space:]]*=.*//' <<<"$line")
        [[ -n $name ]] || continue
        [[ $("$CLUSTER" psql "$NAME" -XAtq -d postgres -c "SELECT source FROM pg_settings
            WHERE name = lower('$name')") == "configuration file" ]] ||
            die "the server did not take '$line': this build has no such setting, or not this value of it"
    done <<<"$CAPTURE"
}

# How much of the suite was followed, which is what its equal results are worth.
count_captured() {
    captured=$("$CLUSTER" psql "$NAME" -XAtq -d postgres -c "SELECT format('%s statements, %s of them slow, %s kept with a plan;
            %s known with statistics', queries_total, queries_slow,
        (SELECT count(*) FROM audit_db.slow_queries WHERE database = 'regression' AND plan IS NOT NULL),
        (SELECT count(*) FROM audit_db.query_stats WHERE database = 'regression')) FROM audit_db.performance_metrics" |
        tr -s ' \n' ' ') || captured="unknown: the server did not say"
}

# Both runs use the same folders under the same names, because paths appear in results.
run() {
    local variant=$1 begun=$SECONDS code=0
    local work=$OUT/work lines=("${SERVER[@]}")
    printf '\n=== %s audit_db ===\n' "$variant"
    "$CLUSTER" drop "$NAME" >/dev/null
    rm -rf "$work"
    mkdir -p "$work"
    own_for_server "$work"
    if [[ $variant == with ]]; then
        mapfile -t -O "${#lines[@]}" lines <<<"$CAPTURE"
    else
        lines+=("shared_preload_libraries = ''")
    fi
    "$CLUSTER" start "$NAME" "$TEST_PG_CONFIG" "${lines[@]}"
    if [[ $variant == with ]]; then
        check_capture
        # Not in the suite's own database, whose catalogs it checks.
        "$CLUSTER" psql "$NAME" -Xq -d postgres -v ON_ERROR_STOP=1 -c 'CREATE EXTENSION audit_db' ||
            die "cannot create the extension"
    fi
    (
        eval "$("$CLUSTER" env "$NAME")"
        cd "$work"
        as_server "$PG_REGRESS" --inputdir="$SUITE" --outputdir="$work" --dlpath="$OUT/lib" --no-locale \
            --bindir="$(dirname "$TEST_PG_CONFIG")" --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" \
            --schedule="$SUITE/parallel_schedule" --max-connections="$MAX_CONNECTIONS" --max-concurrent-tests=20
    ) >"$OUT/$variant.log" 2>&1 || code=$?
    verdicts "$OUT/$variant.log" >"$OUT/$variant.verdicts"
    if [[ $variant == with ]]; then count_captured; fi
    "$CLUSTER" stop "$NAME" >/dev/null
    cp "$RUN_DIR/$NAME/log" "$OUT/$variant.server.log"
    "$CLUSTER" drop "$NAME" >/dev/null
    mv "$work" "$OUT/$variant"
    # 1 is: tests failed. Anything else: it did not come to its end.
    if [[ $code -gt 1 || $(wc -l <"$OUT/$variant.verdicts") -ne $tests ]]; then
        tail -n 20 "$OUT/$variant.log" >&2
        die "pg_regress did not run all $tests tests $variant audit_db (exit code $code); its output: $OUT/$variant.log"
    fi
    say "$(awk '$2 == "ok"' "$OUT/$variant.verdicts" | wc -l) of $tests tests passed in $((SECONDS - begun)) s"
}

# --- comparison ---------------------------------------------------------------------------------------------------

verdict() { sed -n "s/^$2 //p" "$OUT/$1.verdicts"; }

compare() {
    local name before after what
    printf '\n=== comparison ===\n'
    : >"$OUT/differences"
    while read -r name; do
        before=$(verdict without "$name") after=$(verdict with "$name")
        what=""
        if [[ $before != "$after" ]]; then
            what="without: $before, with: $after"
        else
            [[ " ${BY_CHANCE[*]} " == *" $name "* ]] || cmp -s "$OUT"/{without,with}/results/"$name.out" ||
                what="results differ (both: $before)"
        fi
        if [[ -n $what ]]; then
            different+=("$name")
            say "$name: $what"
            {
                say "### $name: $what"
                (cd "$OUT" && diff -u --text {without,with}/results/"$name.out") || true
            } >"$temp/diff"
            # The server's end makes hundreds of them.
            if [[ ${#different[@]} -le 10 ]]; then sed -n '2,60p' "$temp/diff"; fi
            cat "$temp/diff" >>"$OUT/differences"
        elif [[ $before == ok ]]; then
            passed=$((passed + 1))
        else
            failed+=("$name")
        fi
    done < <(cut -d ' ' -f 1 "$OUT/without.verdicts")
    [[ ${#different[@]} -gt 0 ]] || say "the same"
}

# --- all of it ----------------------------------------------------------------------------------------------------

"$ROOT/scripts/bootstrap.sh"
. "$ROOT/scripts/env.sh"
# Settings of the caller's clients are not those of the suite.
unset PGDATA PGHOST PGHOSTADDR PGPORT PGUSER PGPASSWORD PGDATABASE PGSERVICE PGOPTIONS PGCLIENTENCODING PG_COLOR
temp=$(mktemp -d)
# apt downloads as a user of its own.
chmod 755 "$temp"
PG_REGRESS=$(dirname "$("$TEST_PG_CONFIG" --pgxs)")/../test/regress/pg_regress
[[ -x $PG_REGRESS ]] || die "$PG_REGRESS is missing (package postgresql-server-dev-$PG_MAJOR)"
get_suite
check_server_access "$ROOT"
check_server_access "$SUITE"
check_lock
"${CARGO_PGRX_CMD[@]}" install --release --pg-config "$TEST_PG_CONFIG" "${FEATURES[@]}"
rm -rf "$OUT"
mkdir -p "$OUT"
build_library
tests=$(awk '/^test:/ { n += NF - 1 } END { print n + 0 }' "$SUITE/parallel_schedule")

run without
run with
passed=0 failed=() different=()
compare
# Workers may complain, or die, where no test sees it.
crashes=$(grep -cE 'PANIC: |was terminated by signal' "$OUT/with.server.log" || true)
complaints=$({ grep -E -A 1 'PANIC: |was terminated by signal' "$OUT/with.server.log" || true
    grep -E '(WARNING|ERROR|FATAL): ' "$OUT/with.server.log" | grep -F audit_db |
        grep -vF 'due to administrator command' || true; } | head -n 20)
if [[ -n $complaints ]]; then printf '\n=== what the server with audit_db complains of ===\n%s\n' "$complaints"; fi

printf '\n=== summary ===\n'
say "tests                   $tests"
say "passed in both          $passed"
say "same failure in both    ${#failed[@]}${failed[*]:+: ${failed[*]}}"
say "different               ${#different[@]}${different[*]:+: ${different[*]}}"
say "server crashes          $crashes"
say "captured                $captured"
say "$SECONDS s; results in ${OUT#"$ROOT"/}"
[[ ${#failed[@]} -eq 0 ]] || say "why tests fail without audit_db: ${OUT#"$ROOT"/}/without/regression.diffs"
[[ ${#different[@]} -eq 0 && $crashes -eq 0 ]] ||
    die "audit_db changes what PostgreSQL's own tests see: ${OUT#"$ROOT"/}/differences, with.server.log"
