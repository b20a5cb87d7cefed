#!/usr/bin/env bash
# Set-up and all checks: format, lint, types, import contracts, tests. `bash scripts/test.sh --fast` leaves out the tests
# that train until a learning claim can be asserted; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/setup.sh
setup_environment

selection="slow or not slow"
if [ "${1:-}" = "--fast" ]; then
    selection="not slow"
    shift
fi

# The tests' models are tiny: one thread is as fast as two, and other work on the machine does not stall it.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

ruff format --check .
ruff check .
mypy
lint-imports
# One worker a core; a worker that has nothing left takes tests from another.
pytest -m "$selection" --numprocesses auto --maxprocesses 8 --dist worksteal "$@"
