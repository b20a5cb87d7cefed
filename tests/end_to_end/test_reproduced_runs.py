"""A run done again by its own `reproduce.sh`, or by `rlhf rerun`, comes to the same figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import fingerprints, finished_metrics, placed

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]

QUICK = ("debug=tiny", "logger=none", "cache=off", "pipeline=sft", "data.demonstrations=64")
"""One stage, whose loss depends on its seed."""


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program's own code and configs in a repository of their own."""
    directory = tmp_path_factory.mktemp("a checkout")
    for name in ("rlhf_lightning", "conf"):
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    shutil.copy(ROOT / ".gitignore", directory)
    git(directory, "init")
    git(directory, "add", ".")
    git(directory, "commit", "-m", "as it is")
    return directory


def call(*command: str, code: Path, place: Path, threads: int) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(code), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": str(threads)}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=place, env=variables)


def test_a_run_from_a_changed_checkout_is_reproduced_with_the_change(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fresh interpreters, since each is to find other code."""
    module = checkout / "rlhf_lightning" / "experiment" / "stage.py"
    committed = module.read_text()
    changed = committed.replace('f"{self.settings.seed}:{self.name}"', 'f"another {self.settings.seed}"')
    assert changed != committed
    module.write_text(changed)
    command = (sys.executable, "-m", "rlhf_lightning", "train", *QUICK, *placed(tmp_path))
    done = call(*command, code=checkout, place=tmp_path, threads=1)
    assert done.returncode == 0, done.stderr
    module.write_text(committed)
    run = RunDirectory.open((tmp_path / "run").rename(tmp_path / "it's moved"))

    script = ["bash", str(run.path / "reproduce.sh"), "--to", "again"]
    # Another number of threads, and other code to be found first: neither may matter.
    done = call(*script, code=ROOT, place=tmp_path, threads=2)
    assert done.returncode == 0, done.stderr
    assert "The same: all" in done.stdout
    again = RunDirectory.open(tmp_path / "again")
    weights = "model.safetensors"
    assert fingerprints(again.path / "sft")[weights] == fingerprints(run.path / "sft")[weights]
    report = json.loads((again.path / "reproduction.json").read_text())
    assert (report["of"], report["differences"]) == (str(run.path), [])
    origin = again.provenance
    assert origin is not None
    assert origin["environment"]["OMP_NUM_THREADS"] == "1"
    assert origin["git"]["diff"] == (run.provenance or {})["git"]["diff"]

    # The code of this process, without the change, is other code, and comes to other figures.
    assert main(["rerun", str(run.path)]) == 2
    assert "the code of rlhf_lightning" in capsys.readouterr().err
    assert main(["rerun", str(run.path), "--force"]) == 3
    assert "stages.sft.loss" in capsys.readouterr().out
    other = finished_metrics(RunDirectory.open(tmp_path / "it's moved-rerun"))
    assert other["stages"]["sft"]["loss"] != finished_metrics(run)["stages"]["sft"]["loss"]
