"""`scripts/setup.sh` installs what the calling script needs, and nothing twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PYTHON = """\
#!/bin/bash
# Makes an environment whose python is this file; writes what pip is to install to `installed`.
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python && touch .venv/bin/activate ;;
    *--editable*) echo "${@: -1}" >> installed && exit "${PIP_EXIT_CODE:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that set-up reads, and an interpreter that installs nothing."""
    for name in ("pyproject.toml", "scripts/constraints.txt", "scripts/setup.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def set_up(checkout: Path, script: str, **variables: str) -> int:
    """The exit code of the set-up that a script asks for."""
    (asked,) = re.findall(r"^setup_environment.*$", (ROOT / "scripts" / script).read_text(), re.MULTILINE)
    command = ["bash", "-euo", "pipefail", "-c", f". scripts/setup.sh; {asked}"]
    environment = {**os.environ, "PYTHON": "./python", **variables}
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, check=False).returncode


def installed(checkout: Path) -> list[str]:
    """The requirements that were installed, in order."""
    return (checkout / "installed").read_text().split()


def test_the_tests_install_what_the_quickstart_left_out(checkout: Path) -> None:
    for script in ("quickstart.sh", "quickstart.sh", "test.sh", "test.sh", "quickstart.sh"):
        assert set_up(checkout, script) == 0
    assert installed(checkout) == [".", ".[dev]"]


@pytest.mark.parametrize("changed", ["pyproject.toml", "scripts/constraints.txt"])
def test_a_changed_requirement_is_installed_again(checkout: Path, changed: str) -> None:
    set_up(checkout, "test.sh")
    with (checkout / changed).open("a") as file:
        file.write("# another line\n")
    for script in ("quickstart.sh", "test.sh"):
        assert set_up(checkout, script) == 0
    assert installed(checkout) == [".[dev]", ".", ".[dev]"]


def test_a_failed_installation_is_tried_again(checkout: Path) -> None:
    assert set_up(checkout, "test.sh", PIP_EXIT_CODE="1") == 1
    assert set_up(checkout, "test.sh") == 0
    assert installed(checkout) == [".[dev]", ".[dev]"]
