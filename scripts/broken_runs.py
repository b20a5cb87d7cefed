"""A healthy PPO run and five broken ones on the embedded world, and what `rlhf doctor` says of each.

    python scripts/broken_runs.py OUT_DIR                       # minutes on a CPU; the start is trained first
    python scripts/broken_runs.py OUT_DIR --only no_kl healthy  # some of them
    python scripts/broken_runs.py outputs/broken --record tests/evaluation/histories   # renews what the tests read

A run that is there already is not made again. The exit code is 1 if the doctor does not name the cause of each.
"""

from __future__ import annotations

import argparse
import csv
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl

from rlhf_lightning.algorithms.ppo_iteration import RolloutBufferCallback
from rlhf_lightning.cli.doctor import read_run
from rlhf_lightning.evaluation.doctor import Verdict, diagnose

logger = logging.getLogger("broken_runs")

START = "start"
"""Where the SFT policy and the reward model lie that all runs begin from."""
RECORDED = ("config.yaml", "status.json")


class SampleAtAnotherTemperature(pl.Callback):
    """The defect of many PPO codes: the sampler's temperature is not the one that log-probs are computed at.

    Args:
        temperature: of the sampler alone.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del pl_module
        attached: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        (rollouts,) = [callback for callback in attached if isinstance(callback, RolloutBufferCallback)]
        rollouts.collector.sampler.temperature = self.temperature


HOT = (
    "allow_targets=[broken_runs]",
    "callbacks.extra=[{_target_: broken_runs.SampleAtAnotherTemperature, temperature: 1.4}]",
)


@dataclass(frozen=True)
class Case:
    """A way to break a run.

    Attributes:
        overrides: what is done to it.
        cause: the finding that must stand among the causes; None: the run must be healthy.
        fails: whether the run itself must stop with an error.
    """

    overrides: tuple[str, ...]
    cause: str | None
    fails: bool = False


CASES = {
    "healthy": Case((), None),
    "learning_rate": Case(("ppo.learning_rate=1e-2",), "learning_rate_too_high"),
    "no_kl": Case(("kl=none", "ppo.iterations=60", "ppo.learning_rate=2e-4"), "no_kl_penalty"),
    "temperature": Case(("callbacks.self_checks=false", *HOT), "sampling_mismatch"),
    "temperature_checked": Case(HOT, "failed", fails=True),
    "length": Case(
        ("reward.length_penalty=-0.2", "ppo.iterations=45", "ppo.learning_rate=2e-4"),
        "length_gaming",
    ),
    "frozen_value": Case(("ppo.value_coef=0",), "critic_does_not_learn"),
}


def main(argv: Sequence[str]) -> int:
    """Makes the runs and examines them."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    out: Path = arguments.out_dir
    if not (out / START / "reward_model").exists():
        train(out / START, ("pipeline.stages=[sft,comparisons,reward_model]",), arguments.seed)
    right = True
    for name in arguments.only:
        case = CASES[name]
        if not (out / name / "config.yaml").exists():
            train(out / name, (*continued(out, arguments.iterations), *case.overrides), arguments.seed, case.fails)
        right &= examine(name, out / name)
        if arguments.record is not None:
            record(out / name, arguments.record / name)
    return 0 if right else 1


def parser() -> argparse.ArgumentParser:
    """The arguments of the script."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("out_dir", type=Path)
    arguments.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    arguments.add_argument("--iterations", type=int, default=30)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--record", type=Path, help="where a small copy of what the doctor reads is put")
    return arguments


def continued(out: Path, iterations: int) -> tuple[str, ...]:
    """PPO alone, from the start that all runs share."""
    return (
        "pipeline=ppo",
        f"ppo.policy_from={out / START / 'sft'}",
        f"ppo.reward_from={out / START / 'reward_model'}",
        f"ppo.iterations={iterations}",
    )


def train(run: Path, overrides: Sequence[str], seed: int, fails: bool = False) -> None:
    """`rlhf train` in a process of its own.

    Raises:
        SystemExit: it ended otherwise than it should.
    """
    logger.info("%s: rlhf train %s", run.name, " ".join(overrides))
    command = [sys.executable, "-m", "rlhf_lightning", "train", *overrides]
    command += [f"seed={seed}", f"paths.run_dir={run}", "logger=none", "trainer.threads=1"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if (done.returncode != 0) != fails:
        raise SystemExit(f"{run.name} ended with exit code {done.returncode}:\n{done.stderr}")


def examine(name: str, run: Path) -> bool:
    """What the doctor says; whether it is what it should say."""
    diagnosis = diagnose(read_run(run))
    causes = [finding.name for finding in diagnosis.causes]
    wanted = CASES[name].cause
    right = diagnosis.verdict is Verdict.HEALTHY if wanted is None else causes[:1] == [wanted]
    logger.info("%s: %s %s%s", name, diagnosis.verdict, causes, "" if right else f", but {wanted} was wanted")
    return right


def record(run: Path, place: Path) -> None:
    """Copies what the doctor reads, without what differs from machine to machine."""
    place.mkdir(parents=True, exist_ok=True)
    for file in RECORDED:
        text = (run / file).read_text(encoding="utf-8").replace(f"{Path.cwd()}{os.sep}", "")
        (place / file).write_text(text, encoding="utf-8")
    history = run / "history.csv"
    if not history.exists():
        return
    with history.open(newline="", encoding="utf-8") as source, (place / "history.csv").open("w", newline="") as copy:
        writer = csv.writer(copy, lineterminator="\n")
        for row in csv.reader(source):
            if not row[3].startswith(("time/", "rollout/tokens_per_second")):
                writer.writerow([*row[:4], row[4] if row[4] == "value" else f"{float(row[4]):.6g}"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
