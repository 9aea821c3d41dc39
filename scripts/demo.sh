#!/usr/bin/env bash
# From nothing to a server with a filled audit log; the second time in seconds.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"
CLUSTER=scripts/cluster.sh

"$ROOT/scripts/bootstrap.sh"
. "$ROOT/scripts/env.sh"

say "" "building (the first time takes some minutes)"
check_lock
"${CARGO_PGRX_CMD[@]}" install --release --pg-config "$DEMO_PG_CONFIG" "${FEATURES[@]}"

say ""
"$CLUSTER" start demo "$DEMO_PG_CONFIG"
"$CLUSTER" psql demo -X -q -v ON_ERROR_STOP=1 -d postgres \
    -c "SET client_min_messages = warning" -c "DROP DATABASE IF EXISTS hospital WITH (FORCE)" -c "CREATE DATABASE hospital"
# demo.sql includes its neighbour with \ir; no pager, so that nothing waits for a key.
"$CLUSTER" psql demo -X -P pager=off -d hospital -f demo/demo.sql

socket=$(<"$RUN_DIR/demo/socket")
port=$(<"$RUN_DIR/demo/port")
cat <<TEXT

The server is running. Connect with

    $(dirname "$DEMO_PG_CONFIG")/psql -h $socket -p $port -U postgres hospital

and stop it with

    make demo-stop

Elapsed: $SECONDS s
TEXT
