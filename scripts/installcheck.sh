#!/usr/bin/env bash
# pg_regress on tests/pg_regress against the running server that PGHOST, PGPORT and PGUSER name.
# Files preload_*.sql run only where the library is preloaded, nopreload_*.sql only where it is not.
# UPDATE=1 takes the results over as the expected output: read the difference before committing it.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"

# shellcheck disable=SC2153  # from the caller's environment
[[ -n ${PGHOST:-} && -n ${PGPORT:-} && -n ${PGUSER:-} ]] || die "set PGHOST, PGPORT and PGUSER to a running server"
config=$(find_pg_config)
bin=$("$config" --bindir)
pg_regress=$(dirname "$("$config" --pgxs)")/../test/regress/pg_regress
[[ -x $pg_regress ]] || die "$pg_regress is missing (package postgresql-server-dev-$PG_MAJOR)"
input=$ROOT/tests/pg_regress

preloaded=$("$bin/psql" -XAtq -d postgres -c 'SHOW shared_preload_libraries')
variant=nopreload other=preload
if [[ ",${preloaded//[[:space:]\"]/}," == *,audit_db,* ]]; then variant=preload other=nopreload; fi

tests=()
for file in "$input"/sql/*.sql; do
    [[ -f $file ]] || die "no tests in $input/sql"
    name=$(basename "$file" .sql)
    [[ $name == "${other}_"* ]] || tests+=("$name")
done
mapfile -t tests < <(printf '%s\n' "${tests[@]}" | LC_ALL=C sort)

output=$RUN_DIR/regress-results/$variant
rm -rf "$output"
mkdir -p "$output" "$input/expected"
# pg_regress gives up altogether at the first missing file.
for name in "${tests[@]}"; do
    if [[ ! -f $input/expected/$name.out ]]; then
        [[ ${UPDATE:-0} == 1 ]] || die "no expected output for $name.sql: run with UPDATE=1 and read what it says"
        : >"$input/expected/$name.out"
    fi
done
say "variant $variant, ${#tests[@]} files"
failed=0
(cd "$output" && "$pg_regress" --inputdir="$input" --outputdir="$output" --bindir="$bin" \
    --dbname=contrib_regression --host="$PGHOST" --port="$PGPORT" --user="$PGUSER" "${tests[@]}") || failed=$?

if [[ ${UPDATE:-0} == 1 ]]; then
    for name in "${tests[@]}"; do
        [[ -f $output/results/$name.out ]] || die "$name.sql was not run to its end"
    done
    cp "$output"/results/*.out "$input/expected/"
    say "expected output replaced: see git diff tests/pg_regress/expected"
    exit 0
fi
if [[ $failed -ne 0 ]]; then
    [[ ! -s $output/regression.diffs ]] || cat "$output/regression.diffs"
    die "pg_regress failed ($variant); results in $output"
fi
