"""Finished runs that nobody ran: a config, figures and an origin."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.preflight import check_run
from rlhf_lightning.stages.run_directory import METRICS, PROVENANCE, RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings

METRICS_OF_A_RUN = {
    "stages": {
        "sft": {"demonstrations": 2850, "loss": 0.7},
        "reward_model": {
            "pairs": 29,
            "training_pairs": 113,
            "accuracy": 0.6,
            "accuracy_ci": [0.4, 0.8],
            "lift": -0.05,
            "lift_ci": [-0.2, 0.1],
        },
        "ppo": {"prompts": 1794, "score": 0.2},
    },
    "evaluate": {
        policy: {
            split: {"gold_reward": gold, "gold_reward_ci": [gold - 0.5, gold + 0.5], "kl": 1.5}
            for split in ("iid", "ood")
        }
        for policy, gold in (("sft", -0.25), ("ppo", 1.5))
    },
}
PROVENANCE_OF_A_RUN = {
    "started": "2026-11-22T21:28:08+00:00",
    "overrides": ["debug=tiny"],
    "rlhf_lightning": "0.1.0",
    "git": {"commit": "94dceb9", "dirty": True},
    "packages": {"torch": "2.13.0"},
    "data": {},
}


@pytest.fixture(scope="session")
def write_options() -> Callable[[Path, Mapping[str, str]], None]:
    """Fills a config folder: text by the name of its option, `group/option`."""

    def write(folder: Path, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = folder / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write


@pytest.fixture(scope="session")
def composed() -> Callable[..., RunSettings]:
    """Composes and checks a config: `composed("peft=lora")`."""
    tree = ConfigTree.load()

    @functools.cache
    def compose(*overrides: str) -> RunSettings:
        settings = check_run(tree, ["debug=tiny", *overrides]).settings
        assert settings is not None
        return settings

    return compose


@pytest.fixture
def finished_run(tmp_path: Path, composed: Callable[..., RunSettings]) -> Callable[..., RunDirectory]:
    """Builds finished runs without stages; keywords are changes of the config's top level."""

    def build(*overrides: str, **changes: Any) -> RunDirectory:
        settings = composed(*overrides).model_dump(mode="json") | changes
        run = RunDirectory.create(tmp_path / "run", settings, overrides)
        run.write_json(METRICS, METRICS_OF_A_RUN)
        run.write_json(PROVENANCE, PROVENANCE_OF_A_RUN)
        run.update_status(state="finished")
        return run

    return build


@pytest.fixture(scope="session")
def git() -> Callable[..., str]:
    """Runs git in a directory, as somebody, and returns what it says."""

    def run(directory: Path, *arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=trunk"]
        command = ["git", "-C", str(directory), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return run


@pytest.fixture
def checkout(tmp_path: Path, git: Callable[..., str]) -> Path:
    """A package in a repository with one commit, in a folder with a name that a shell takes apart."""
    package = tmp_path / "a repository's $HOME}" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    git(package.parent, "init")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "one")
    return package
