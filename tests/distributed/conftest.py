"""One small run in one process, which the tests of this folder compare with, and go on from."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import FIRST_UPDATE, SMALL, from_stages_of, train_alone


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline; PPO ends after its first optimizer step."""
    world = tmp_path_factory.mktemp("alone")
    return train_alone(world / "run", *SMALL, *FIRST_UPDATE, cwd=world)


@pytest.fixture(scope="session")
def from_stages(alone: Path) -> tuple[str, ...]:
    """Overrides for PPO alone, from what the other stages left there."""
    return from_stages_of(alone)
