"""How a run ended, from the error that ended it."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.runs import run
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings


class InterruptedFile(io.BytesIO):
    """A file during whose writing, at the third piece, somebody presses Ctrl-C."""

    pieces = 0

    def write(self, piece: Any) -> int:
        self.pieces += 1
        if self.pieces == 3:
            raise KeyboardInterrupt
        return super().write(piece)


def half_a_checkpoint() -> None:
    torch.save({"weights": torch.zeros(4)}, InterruptedFile())


def exit_of_lightning() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        raise SystemExit(1)  # noqa: B904  as Lightning does it


def defect() -> None:
    raise RuntimeError("unexpected")


@pytest.mark.parametrize(
    ("failure", "state"),
    [(half_a_checkpoint, "interrupted"), (exit_of_lightning, "interrupted"), (defect, "failed")],
)
def test_what_libraries_make_of_an_interruption_is_one(
    composed: Callable[..., RunSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: Callable[[], None],
    state: str,
) -> None:
    settings = composed()
    directory = RunDirectory.create(tmp_path / "run", settings.model_dump(mode="json"), [])
    monkeypatch.setattr(run, "_run_pipeline", lambda *_: failure())
    assert run.execute(settings, directory, []).state == state
    assert directory.status.state == state
