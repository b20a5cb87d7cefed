"""What frozen blocks give travels with the rollouts: each process goes on from what another one computed."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import assert_alike, history, train, train_alone

TOP = ("peft=top_layers", "peft.layers=1", "ppo.iterations=3", "trainer.accelerator=cpu")


@pytest.mark.slow
@pytest.mark.parametrize("choices", [(), ("kl.estimator=exact", "kl.apply_to=loss")], ids=["sampled", "exact"])
def test_two_processes_end_where_one_does(
    from_stages: tuple[str, ...], tmp_path: Path, choices: tuple[str, ...]
) -> None:
    anew = train_alone(tmp_path / "anew", *from_stages, *TOP, *choices, "peft.reuse_trunk=false", cwd=tmp_path)
    two = train(tmp_path / "two", *from_stages, *TOP, *choices, "trainer=ddp", cwd=tmp_path)
    assert_alike(anew, two)
    before, after = history(anew), history(two)
    assert before.keys() == after.keys()
    assert {key: after[key] for key in before} == pytest.approx(before, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_whole_models_are_run_where_processes_hold_shards(from_stages: tuple[str, ...], tmp_path: Path) -> None:
    one = train_alone(tmp_path / "one", *from_stages, *TOP, cwd=tmp_path)
    two = train(tmp_path / "two", *from_stages, *TOP, "trainer=fsdp", cwd=tmp_path)
    assert_alike(one, two)
    assert "trainer=fsdp runs whole models only" in (two / "run.log").read_text()
