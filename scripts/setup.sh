# Sourced by the other scripts: makes .venv, installs the project with pinned dependencies, and activates it.
# PYTHON names the interpreter (3.11 or newer; default python3). .venv/.installed says what is installed: a checksum of
# pyproject.toml, the pins and this file, then the requirement. Nothing is installed again while it holds.

# Without written bytecode, as some machines ask for, each interpreter would compile all anew.
unset PYTHONDONTWRITEBYTECODE

# setup_environment [EXTRA]: the project, with an extra of pyproject.toml if one is named.
setup_environment() {
    local python="${PYTHON:-python3}" requirement=".${1:+[$1]}" inputs stamp=".venv/.installed"
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Python 3.11 or newer is needed, and '$python' is not that. Set PYTHON=/path/to/python3.11." >&2
        return 1
    fi
    inputs="$(cat pyproject.toml scripts/constraints.txt scripts/setup.sh | cksum)"
    # A prefix is enough: `.[dev]` includes `.`.
    if [[ "$(cat "$stamp" 2>/dev/null)" != "$inputs $requirement"* ]]; then
        echo "Installing into .venv (once; a few minutes) ..."
        "$python" -m venv .venv
        # A pip as old as the interpreter takes twice as long. Bytecode is written as modules are imported: two thirds of
        # what is installed never is.
        local install=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-compile)
        install+=(--constraint scripts/constraints.txt)
        "${install[@]}" --upgrade pip
        "${install[@]}" --editable "$requirement"
        printf '%s' "$inputs $requirement" > "$stamp"
    fi
    # shellcheck disable=SC1091
    . .venv/bin/activate
}
