"""Runs of the real command line, in processes of their own or in this one, and how far apart their weights end."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import forked
import torch
from forked import Process
from safetensors.torch import load_file

from rlhf_lightning.cli.main import main

SMALL = (
    "debug=tiny",
    "logger=none",
    "data.demonstrations=64",
    "comparisons.prompts=12",
    "comparisons.held_out_fraction=0.25",
    "rollout.max_new_tokens=16",
    "ppo.learning_rate=1e-3",
)
"""The whole pipeline within seconds, at a step size at which the policy moves."""

LIMIT = 120.0
"""Seconds after which a run counts as stuck."""

CLONE_NEWNET = 0x40000000
"""From Linux's sched.h."""

TIMES = ("time/", "rollout/tokens_per_second")


def from_stages_of(run: Path) -> tuple[str, ...]:
    """Overrides for PPO alone, from what the other stages of a run left; several micro-batches a step, on each rank."""
    return (
        *("debug=tiny", "logger=none", "pipeline=ppo", "ppo.learning_rate=1e-3", "ppo.micro_batch_size=2"),
        *("rollout.batch_size=8", "rollout.max_new_tokens=16"),
        *(f"ppo.policy_from={run / 'sft'}", f"ppo.reward_from={run / 'reward_model'}"),
    )


def environment(**changes: str) -> dict[str, str]:
    """One thread a process, and no trace of a launcher that may have started the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK"):
        kept.pop(name, None)
    return {**kept, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **changes}


def started(
    *arguments: str,
    cwd: Path,
    changes: Mapping[str, str] | None = None,
    body: tuple[Any, tuple[Any, ...]] | None = None,
) -> Process:
    """`rlhf ARGUMENTS` in a process of its own, and its ranks too; both outputs of all of them are its `stdout`."""
    said = Path(tempfile.mkdtemp(prefix="ranks-")) / "said"
    said.touch()
    return forked.start(arguments, cwd=cwd, env=environment(**(changes or {})), body=body, outputs=(said, said))


def ended(process: Process) -> tuple[int, str]:
    """The exit code of a process, and what it said."""
    try:
        return process.wait(LIMIT), process.stdout
    except subprocess.TimeoutExpired:
        process.kill_group()
        raise


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


def find_modules_in(directory: str) -> None:
    """The body of a process with that PYTHONPATH."""
    sys.path.insert(0, directory)


def as_torchrun(host: str | None, *options: str) -> None:
    """The body of a process that is `torchrun OPTIONS`, on that host; its processes are forked from it."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    def leader(args: Any, **options: Any) -> Any:
        process = forked.Forked(args, **options)
        os.setpgid(process.pid, 0)  # torchrun sends its signals to groups
        return process

    if host is not None:
        on_host(host)
    subprocess_handler.Popen = leader  # type: ignore[assignment, misc]
    run.main(options)
    sys.exit(0)


def on_host(name: str) -> None:
    """Moves this process, and all that it starts, into the network namespace of that name: `ip netns exec`."""
    with Path("/var/run/netns", name).open() as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), name)


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
