"""Virtual tokens on several processes: whole on each, or in shards with the trunk that they stand in front of."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import assert_alike, history, train, train_alone

TUNED = ("peft=prompt_tuning", "peft.virtual_tokens=4", "ppo.iterations=3", "trainer.accelerator=cpu")


@pytest.fixture(scope="module")
def one(from_stages: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    world = tmp_path_factory.mktemp("one")
    return train_alone(world / "run", *from_stages, *TUNED, cwd=world)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_end_where_one_does(
    one: Path, from_stages: tuple[str, ...], tmp_path: Path, strategy: str
) -> None:
    two = train(tmp_path / "two", *from_stages, *TUNED, f"trainer={strategy}", cwd=tmp_path)
    assert_alike(one, two)
    before, after = history(one), history(two)
    assert before.keys() == after.keys()
    assert {key: after[key] for key in before} == pytest.approx(before, rel=1e-4, abs=1e-5)
    assert (two / "ppo" / "adapter_config.json").is_file()
