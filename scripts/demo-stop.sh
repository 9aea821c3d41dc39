#!/usr/bin/env bash
# Stops the demo's server. Its data stay in .run/demo; "make demo" makes the database anew.
set -euo pipefail
exec "$(dirname "${BASH_SOURCE[0]}")/cluster.sh" stop demo
