"""Two processes train what one process trains: the same weights to 1e-5, the same figures, at the same global batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import assert_alike, history

PAIRS = [
    ("pipeline", "ddp", ""),
    ("pipeline", "fsdp", ""),
    ("limits", "ddp", ""),
    ("frozen blocks", "ddp", ""),
    ("virtual tokens", "fsdp", ""),
    ("LoRA", "fsdp", "a model of its own (trainer=fsdp puts weights together for a whole policy only)"),
    ("LoRA, recomputed", "ddp", "on the policy's frozen weights"),
]
"""A training, the strategy of the two processes, and what their log says of it."""


@pytest.mark.parametrize(("name", "strategy", "logged"), PAIRS)
def test_two_processes_end_where_one_does(name: str, strategy: str, logged: str, trained: Callable[..., Path]) -> None:
    one, two = trained(name), trained(name, strategy)
    assert_alike(one, two)
    before, after = history(one), history(two)
    assert before.keys() == after.keys()
    assert {key: after[key] for key in before} == pytest.approx(before, rel=1e-4, abs=1e-5)
    assert logged in (two / "run.log").read_text()


def test_only_the_first_process_writes(trained: Callable[..., Path]) -> None:
    one, two = trained("pipeline"), trained("pipeline", "ddp")
    assert {path.relative_to(two) for path in two.rglob("*")} == {path.relative_to(one) for path in one.rglob("*")}


def test_adapters_are_left_as_such(trained: Callable[..., Path]) -> None:
    for stage in ("sft", "reward_model", "ppo"):
        assert not (trained("LoRA", "fsdp") / stage / "model.safetensors").exists()
    assert (trained("virtual tokens", "fsdp") / "ppo" / "adapter_config.json").is_file()
