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

ruff format --check .
ruff check .
mypy
lint-imports
pytest -m "$selection" "$@"
