#!/usr/bin/env bash
# Format, clippy, shellcheck.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$ROOT"

cargo fmt --all --check
say "format: ok"
cargo clippy --locked --quiet --workspace --all-targets "${FEATURES[@]}" -- -D warnings
say "clippy: ok"
if command -v shellcheck >/dev/null; then
    shellcheck -x scripts/*.sh .ci/run
    say "shellcheck: ok"
else
    say "shellcheck: skipped: shellcheck not installed"
fi
