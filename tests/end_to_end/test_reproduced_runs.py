"""A run done again by its own `reproduce.sh`, or by `rlhf rerun`, comes to the same figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from tiny_runs import fingerprints, finished_metrics, placed

from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]

QUICK = ("debug=tiny", "logger=none", "cache=off", "pipeline=sft", "data.demonstrations=64")
"""One stage, whose loss depends on its seed."""


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True)


def call(*command: str, code: Path, place: Path, threads: int) -> subprocess.CompletedProcess[str]:
    """A command in a fresh interpreter, which is to find that code."""
    variables = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=place, env=variables)


@pytest.fixture(scope="session")
def changed(once: Callable[[str, Callable[[Path], None]], Path]) -> RunDirectory:
    """A run from a checkout with a change that was never committed, and is gone; the run has been moved."""

    def build(directory: Path) -> None:
        checkout = directory / "a checkout"
        for name in ("rlhf_lightning", "conf"):
            shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("local"))
        shutil.copy(ROOT / ".gitignore", checkout)
        git(checkout, "init")
        git(checkout, "add", ".")
        git(checkout, "commit", "-m", "as it is")
        module = checkout / "rlhf_lightning" / "stages" / "context.py"
        committed = module.read_text()
        other = committed.replace(
            'f"{self.inputs.settings.seed}:{self.name}"', 'f"another {self.inputs.settings.seed}"'
        )
        assert other != committed
        module.write_text(other)
        command = (sys.executable, "-m", "rlhf_lightning", "train", *QUICK, *placed(directory))
        done = call(*command, code=checkout, place=directory, threads=1)
        assert done.returncode == 0, done.stderr
        module.write_text(committed)
        (directory / "run").rename(directory / "it's moved")

    return RunDirectory.open(once("changed", build) / "it's moved")


def test_other_code_is_refused_or_comes_to_other_figures(
    changed: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of this process, without the change."""
    monkeypatch.setattr(subprocess, "Popen", forked.Forked)
    rerun = ["rerun", str(changed.path), "--to", str(tmp_path / "again")]
    assert main(rerun) == 2
    assert "the code of rlhf_lightning" in capsys.readouterr().err
    assert main([*rerun, "--force"]) == 3
    assert "stages.sft.loss" in capsys.readouterr().out
    other = finished_metrics(RunDirectory.open(tmp_path / "again"))
    assert other["stages"]["sft"]["loss"] != finished_metrics(changed)["stages"]["sft"]["loss"]


def test_its_own_script_reproduces_it_with_the_change(changed: RunDirectory, tmp_path: Path) -> None:
    script = ["bash", str(changed.path / "reproduce.sh"), "--to", "again"]
    # Another number of threads, and other code to be found first: neither may matter.
    done = call(*script, code=ROOT, place=tmp_path, threads=2)
    assert done.returncode == 0, done.stderr
    assert "The same: all" in done.stdout
    again = RunDirectory.open(tmp_path / "again")
    weights = "model.safetensors"
    assert fingerprints(again.path / "sft")[weights] == fingerprints(changed.path / "sft")[weights]
    report = json.loads((again.path / "reproduction.json").read_text())
    assert (report["of"], report["differences"]) == (str(changed.path), [])
    origin = again.provenance
    assert origin is not None
    assert origin["environment"]["OMP_NUM_THREADS"] == "1"
    assert origin["git"]["diff"] == (changed.provenance or {})["git"]["diff"]
