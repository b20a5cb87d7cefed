"""Tab completion: Hydra's answers, reached through a command that has subcommands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_lightning.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rlhf kl.co", ["kl.coef="]),
        ("rlhf kl=", ["kl=adaptive", "kl=fixed", "kl=none"]),
        ("rlhf seed=3 ppo.clip", ["ppo.clip_range="]),
        ("rlhf -m exper", ["experiment="]),
    ],
)
def test_the_query_completes_groups_options_and_keys(
    line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert main(["train", "-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
def test_the_bash_script_completes_subcommands_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = f"""
        rlhf() {{ {sys.executable} -m rlhf_lightning "$@"; }}
        {capsys.readouterr().out}
        complete_line() {{ COMP_LINE="$1"; COMP_WORDS=($1); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); _rlhf_complete
                          echo "${{COMPREPLY[@]}}"; }}
        complete_line "rlhf tr"
        complete_line "rlhf train kl.co"
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["train", "kl.coef="], done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "train -sc query=" in capsys.readouterr().out


def test_without_a_shell_the_usage_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 2
    assert main(["completion", "tcsh"]) == 2
    assert 'eval "$(rlhf completion bash)"' in capsys.readouterr().err
