# Sourced by the other scripts: makes .venv, installs the project with pinned dependencies, and activates it.
# PYTHON names the interpreter (3.11 or newer; default python3). Nothing is installed again while pyproject.toml and
# the pins stay the same.

setup_environment() {
    local python="${PYTHON:-python3}" wanted stamp=".venv/.installed"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Python 3.11 or newer is needed, and '$python' is not that. Set PYTHON=/path/to/python3.11." >&2
        return 1
    fi
    wanted="$(cat pyproject.toml scripts/constraints.txt scripts/setup.sh | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "Installing into .venv (once; a few minutes) ..."
        "$python" -m venv .venv
        .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile \
            --constraint scripts/constraints.txt --editable '.[dev]'
        # On all cores, where pip takes one. Some packages ship files that do not compile, on purpose: no error.
        .venv/bin/python -m compileall -q -j 0 .venv/lib > /dev/null || true
        printf '%s' "$wanted" > "$stamp"
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
}
