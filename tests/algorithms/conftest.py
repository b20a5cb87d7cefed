"""Real fits of tiny models, and a trainer that shows and writes nothing by itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from fits import assert_same_weights, fit, fit_ppo, stepping

from rlhf_lightning.stages.training import EXPECTED

__all__ = ["assert_same_weights", "fit", "fit_ppo", "make_trainer", "stepping"]


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., pl.Trainer]:
    def build(*callbacks: pl.Callback, **arguments: Any) -> pl.Trainer:
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        return pl.Trainer(
            accelerator="cpu",
            devices=1,
            callbacks=list(callbacks),
            logger=False,
            num_sanity_val_steps=0,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
            **arguments,
        )

    return build
