"""Runs with the stage ppo alone, from artifacts of random weights, in a fraction of a second."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from rlhf_lightning.cli.main import main
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.pipeline import run_pipeline
from rlhf_lightning.runs.validation import settings_from
from rlhf_lightning.stages.run_directory import RunDirectory

SETTINGS = (
    "pipeline=ppo",
    "model=hub",
    "data=files",
    "logger=none",
    "cache=off",
    "data.held_out_fraction=0.1",
    "data.max_prompt_length=8",
    "data.max_response_length=8",
    "rollout.max_new_tokens=5",
    "rollout.batch_size=8",
    "rollout.chunk_size=8",
    "ppo.iterations=2",
    "ppo.epochs=2",
    "ppo.minibatches=2",
    "ppo.micro_batch_size=4",
    "ppo.learning_rate=0.01",
    "ppo.critic_learning_rate=0.01",
    "reward.standardize_on_reference=null",
)


@dataclass(frozen=True)
class PpoRun:
    """A finished run.

    Attributes:
        history: what was logged under each name, in order.
        weights: of the policy, or of the adapter, that it left, and of its value head.
    """

    directory: Path
    history: dict[str, list[float]]
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, directory: Path) -> PpoRun:
        history: dict[str, list[float]] = {}
        with (directory / "history.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                history.setdefault(row["name"], []).append(float(row["value"]))
        whole, adapter = (directory / "ppo" / name for name in ("model.safetensors", "adapter_model.safetensors"))
        weights = load_file(whole if whole.exists() else adapter)
        head = load_file(directory / "ppo" / "value_head.safetensors")
        return cls(directory, history, weights | {f"value_head.{name}": tensor for name, tensor in head.items()})

    @property
    def figures(self) -> dict[str, list[float]]:
        """The history without how long anything took."""
        timed = ("time/", "rollout/tokens_per_second")
        return {name: values for name, values in self.history.items() if not name.startswith(timed)}

    def distance(self, other: PpoRun) -> float:
        """The largest difference of a weight."""
        pairs = ((weight, other.weights[name]) for name, weight in self.weights.items())
        return max(float((one.double() - another.double()).abs().max()) for one, another in pairs)

    def in_common(self, other: PpoRun) -> PpoRun:
        """This run with the weights that the other one has too: runs that train other parts have the value head."""
        shapes = {name: weight.shape for name, weight in other.weights.items()}
        both = {name: weight for name, weight in self.weights.items() if shapes.get(name) == weight.shape}
        return replace(self, weights=both)

    def drift(self, other: PpoRun) -> float:
        """The mean difference of the weights, which a one-sided bias cannot hide in."""
        differences = [(weight.double() - other.weights[name]).flatten() for name, weight in self.weights.items()]
        return float(torch.cat(differences).mean().abs())


def inputs(artifacts: Path) -> list[str]:
    """Overrides that name the artifacts."""
    return [
        f"model.name_or_path={artifacts / 'policy'}",
        f"data.prompts={artifacts / 'prompts.jsonl'}",
        f"ppo.policy_from={artifacts / 'policy'}",
        f"ppo.reward_from={artifacts / 'reward'}",
    ]


def run_ppo(artifacts: Path, directory: Path, *overrides: str) -> PpoRun:
    """Two iterations of `rlhf train pipeline=ppo`, unless the overrides say otherwise."""
    places = [f"paths.outputs={directory}", f"paths.run_dir={directory / 'run'}"]
    assert main(["train", *SETTINGS, *inputs(artifacts), *places, *overrides]) == 0
    return PpoRun.read(directory / "run")


def composed(artifacts: Path, *overrides: str) -> dict[str, Any]:
    """The config of such a run, as plain values."""
    config = ConfigTree.load().compose((*SETTINGS, *inputs(artifacts), "paths.run_dir=?", *overrides))
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))
    return dict(plain)


def run_config(config: Mapping[str, Any], directory: Path) -> PpoRun:
    """The run of a plain config, without the command line's checks, which take longer than these runs."""
    paths = {"outputs": str(directory.parent), "run_dir": str(directory), "sweep_dir": str(directory)}
    settings = settings_from({**config, "paths": paths})
    run = RunDirectory.create(directory, settings.model_dump(mode="json"), [])
    run_pipeline(settings, run)
    return PpoRun.read(directory)
