"""The runs that the tests of this folder compare with, and go on from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from once import once
from runs import SMALL, from_stages_of, train, train_alone
from trainings import TRAININGS


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs of the trainings, each once: in one process, or in two with that strategy."""

    def run(name: str, strategy: str | None = None) -> Path:
        start, overrides, alone = TRAININGS[name]
        base = SMALL if start is None else from_stages_of(run(start))

        def build(world: Path) -> None:
            if strategy is None:
                train_alone(world / "run", *base, *overrides, *alone, cwd=world)
            else:
                two = (f"trainer={strategy}", "trainer.accelerator=cpu")
                train(world / "run", *base, *overrides, *two, cwd=world)

        directory = f"trained {name} {strategy or 'alone'}".replace(",", "")  # a comma in a path is a sweep
        return once(tmp_path_factory, directory, build) / "run"

    return run


@pytest.fixture(scope="session")
def alone(trained: Callable[..., Path]) -> Path:
    """The whole pipeline in one process."""
    return trained("pipeline")
