#!/usr/bin/env bash
# Set-up and all checks: format, lint, types, import contracts, tests. `bash scripts/test.sh --fast` leaves out the tests
# that are marked slow: whole runs, processes, learning claims. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
setup_environment dev

selection="slow or not slow"
if [ "${1:-}" = "--fast" ]; then
    selection="not slow"
    shift
fi

# The tests' models are tiny: one thread is as fast as two, and other work on the machine does not stall it.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

ruff format --check .
ruff check .
# Imports and types are checked beside the tests, and what was found is said at the end.
found="$(mktemp)"
trap 'rm -f "$found"' EXIT
{ status=0; lint-imports || status=$?; mypy || status=$?; exit "$status"; } > "$found" 2>&1 &
checks=$!
# One worker a core; a worker that has nothing left takes tests from another.
failed=0
pytest -m "$selection" --numprocesses auto --maxprocesses 8 --dist worksteal "$@" || failed=$?
wait "$checks" || failed=$?
cat "$found"
exit "$failed"
