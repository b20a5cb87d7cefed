"""Runs of the command line with the stage ppo alone, from artifacts of random weights, in a fraction of a second."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from rlhf_lightning.cli.main import main

SETTINGS = (
    "pipeline=ppo",
    "model=hub",
    "data=files",
    "logger=none",
    "data.held_out_fraction=0.1",
    "data.max_prompt_length=8",
    "data.max_reply_length=8",
    "rollout.max_new_tokens=5",
    "rollout.batch_size=8",
    "rollout.chunk_size=8",
    "ppo.iterations=2",
    "ppo.epochs=2",
    "ppo.minibatches=2",
    "ppo.micro_batch_size=4",
    "ppo.learning_rate=0.01",
    "ppo.critic_learning_rate=0.01",
    "reward.standardise_on_reference=null",
)


@dataclass(frozen=True)
class PpoRun:
    """A finished run.

    Attributes:
        history: what was logged under each name, in order.
        weights: of the policy that it left.
    """

    directory: Path
    history: dict[str, list[float]]
    weights: dict[str, Tensor]

    @property
    def figures(self) -> dict[str, list[float]]:
        """The history without how long anything took."""
        timed = ("time/", "rollout/tokens_per_second")
        return {name: values for name, values in self.history.items() if not name.startswith(timed)}


def run_ppo(artifacts: Path, directory: Path, *overrides: str) -> PpoRun:
    """Two iterations of `rlhf train pipeline=ppo`, unless the overrides say otherwise."""
    given = (
        f"model.name_or_path={artifacts / 'policy'}",
        f"data.prompts={artifacts / 'prompts.jsonl'}",
        f"ppo.policy_from={artifacts / 'policy'}",
        f"ppo.reward_from={artifacts / 'reward'}",
        f"paths.outputs={directory}",
        f"paths.run_dir={directory / 'run'}",
    )
    assert main(["train", *SETTINGS, *given, *overrides]) == 0
    history: dict[str, list[float]] = {}
    with (directory / "run" / "history.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            history.setdefault(row["name"], []).append(float(row["value"]))
    return PpoRun(directory / "run", history, load_file(directory / "run" / "ppo" / "model.safetensors"))
