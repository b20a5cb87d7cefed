"""The history file: written as training goes, and read back as it was."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.utilities import rank_zero_only

from rlhf_lightning.errors import RunDirectoryError
from rlhf_lightning.evaluation.curves import HistoryRow, Point
from rlhf_lightning.tracking.history import HistoryLogger
from rlhf_lightning.tracking.history_file import read_history, series


def test_rows_are_in_long_format(tmp_path: Path) -> None:
    HistoryLogger(tmp_path, "ppo").log_metrics({"objective/kl": 0.1, "rollout/episodes": 256.0}, step=16)
    assert (tmp_path / "history.csv").read_text() == (
        "stage,step,episodes,name,value\nppo,16,256,objective/kl,0.1\nppo,16,256,rollout/episodes,256.0\n"
    )


def test_what_was_logged_is_read_back_exactly(tmp_path: Path) -> None:
    HistoryLogger(tmp_path, "sft").log_metrics({"sft/loss": 1 / 3})
    HistoryLogger(tmp_path, "ppo").log_metrics({"objective/score": 2.0, "rollout/episodes": 64}, step=4)
    assert read_history(tmp_path) == [
        HistoryRow("sft", 0, None, "sft/loss", 1 / 3),
        HistoryRow("ppo", 4, 64, "objective/score", 2.0),
        HistoryRow("ppo", 4, 64, "rollout/episodes", 64.0),
    ]
    assert series(tmp_path, "ppo", "objective/score") == [Point(4, 64, 2.0)]
    assert series(tmp_path, "sft", "objective/score") == []


def test_divergence_can_be_seen(tmp_path: Path) -> None:
    logger = HistoryLogger(tmp_path, "ppo")
    logger.log_metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "rollout/episodes": math.nan}, step=1)
    rows = read_history(tmp_path)
    assert math.isnan(rows[0].value)
    assert [row.value for row in rows[1:3]] == [math.inf, -math.inf]
    assert rows[0].episodes is None


def test_a_resumed_run_repeats_steps_and_the_last_value_counts(tmp_path: Path) -> None:
    for step, value in ((1, 1.0), (2, 2.0), (2, 2.5), (3, 3.0)):
        HistoryLogger(tmp_path, "sft").log_metrics({"sft/loss": value}, step=step)
    assert [(point.step, point.value) for point in series(tmp_path, "sft", "sft/loss")] == [
        (1, 1.0),
        (2, 2.5),
        (3, 3.0),
    ]


def test_only_rank_zero_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    HistoryLogger(tmp_path, "sft").log_metrics({"sft/loss": 1.0}, step=1)
    assert read_history(tmp_path) == []


def test_lightning_logs_through_it(tmp_path: Path) -> None:
    class Logged(BoringModel):
        def training_step(self, batch: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            loss = self.layer(batch).sum()
            self.log("sft/loss", loss)
            return loss

        val_dataloader = None

    trainer = Trainer(
        logger=HistoryLogger(tmp_path, "sft"),
        max_steps=3,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Logged())
    assert [point.step for point in series(tmp_path, "sft", "sft/loss")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("time,loss\n1,2\n", 1),
        ("stage,step,episodes,name,value\nsft,1,,loss,0.5\nsft,2,,lo\n", 3),
        ("stage,step,episodes,name,value\nsft,one,,loss,0.5\n", 2),
    ],
)
def test_a_broken_file_names_the_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "history.csv").write_text(text)
    with pytest.raises(RunDirectoryError, match=f"history.csv, line {line}"):
        read_history(tmp_path)


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    whole = "stage,step,episodes,name,value\nppo,1,64,objective/kl,0.5\n"
    for half in ("ppo,2,12", "ppo,2,128,objective/kl,0.", "p"):
        (tmp_path / "history.csv").write_text(whole + half)
        assert read_history(tmp_path) == [HistoryRow("ppo", 1, 64, "objective/kl", 0.5)]
    (tmp_path / "history.csv").write_text("stage,st")
    assert read_history(tmp_path) == []
