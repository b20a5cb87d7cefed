"""Runs of the real command line, in processes of their own or in this one, and how far apart their weights end."""

from __future__ import annotations

import contextlib
import csv
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from rlhf_lightning.cli.main import main

SMALL = (
    "debug=tiny",
    "logger=none",
    "data.demonstrations=64",
    "comparisons.prompts=12",
    "comparisons.held_out_fraction=0.25",
    "ppo.learning_rate=1e-3",
)
"""The whole pipeline within seconds, at a step size at which the policy moves."""

FIRST_UPDATE = ("ppo.iterations=1", "ppo.epochs=1", "ppo.minibatches=1")
"""PPO ends after one optimizer step."""

LIMIT = 500.0
"""Seconds after which a run counts as stuck."""

TIMES = ("time/", "rollout/tokens_per_second")


def environment(**changes: str) -> dict[str, str]:
    """One thread a process, and no trace of a launcher that may have started the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        kept.pop(name, None)
    return {**kept, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **changes}


def started(
    *arguments: str, cwd: Path, prefix: Sequence[str] = (), changes: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """`rlhf ARGUMENTS` in a process of its own; both of its outputs can be read from `stdout`."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "rlhf_lightning", *arguments],
        cwd=cwd,
        env=environment(**(changes or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a process, and what it said."""
    try:
        said, _ = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, said


def train_alone(directory: Path, *overrides: str, cwd: Path) -> Path:
    """A run that finishes, in this process, whose libraries are loaded already; with one thread, as all others."""
    threads = torch.get_num_threads()
    with contextlib.chdir(cwd):
        code = main(["train", *overrides, "trainer.threads=1", f"paths.run_dir={directory}"])
    torch.set_num_threads(threads)
    assert code == 0
    return directory


def train(directory: Path, *overrides: str, cwd: Path) -> Path:
    """A run that finishes, in the directory of that name, in as many processes as it asks for."""
    code, said = ended(started("train", *overrides, f"paths.run_dir={directory}", cwd=cwd))
    assert code == 0, said
    return directory


class Distance(NamedTuple):
    """How far the weights of a run are from those of another: at most, and on average with their sign."""

    largest: float
    drift: float


def distances(one: Path, other: Path) -> dict[str, Distance]:
    """By the path of each file of weights; both runs have the same files, names and shapes."""
    files = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    assert files
    assert files == sorted(path.relative_to(other) for path in other.rglob("*.safetensors"))
    return {str(file): _distance(load_file(one / file), load_file(other / file)) for file in files}


def assert_alike(one: Path, other: Path) -> None:
    """The weights agree to 1e-5 and, taken together, lean to neither side."""
    for file, distance in distances(one, other).items():
        assert distance.largest <= 1e-5, (file, distance)
        # A defect that moves all weights the same way would hide under the largest difference.
        assert abs(distance.drift) <= 1e-7, (file, distance)


def history(run: Path) -> dict[tuple[str, str, str], float]:
    """Every logged figure but times, by stage, step and name."""
    with (run / "history.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        (row["stage"], row["step"], row["name"]): float(row["value"])
        for row in rows
        if not row["name"].startswith(TIMES)
    }


def _distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> Distance:
    assert {name: tensor.shape for name, tensor in one.items()} == {n: tensor.shape for n, tensor in other.items()}
    gaps = torch.cat([(other[name].double() - one[name].double()).flatten() for name in one])
    return Distance(float(gaps.abs().max()), float(gaps.mean()))
