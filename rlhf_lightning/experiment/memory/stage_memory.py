"""One stage's memory: the static part of its models, and the measured peak."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import psutil
import torch
from rich import box
from rich.console import RenderableType
from rich.table import Table
from torch import nn

from rlhf_lightning.algorithms.optimization import OptimizerFactory
from rlhf_lightning.experiment.memory.static import StaticMemory, in_words

logger = logging.getLogger(__name__)

SAMPLE_SECONDS = 0.05
"""Interval between samples of the resident set: a shorter peak may be missed."""


class StageMemory:
    """Measures the peak memory of a `with` block, the stage, on its device.

    On a GPU it is torch's peak of reserved memory. On a CPU it is the sampled resident set of the whole process, which
    includes the interpreter, its libraries, and memory of earlier stages that the C library has not given back.

    Attributes:
        static: None until a training begins.
        peak: bytes, when the block is over.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.static: StaticMemory | None = None
        self.peak = 0
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> StageMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_reserved(self.device)
        else:
            self._over.set()
            self._sampler.join()

    def count(self, models: Mapping[str, nn.Module], make_optimizer: OptimizerFactory) -> None:
        """Log the static memory of a training (without activations); to be called before its first step."""
        self.static = StaticMemory.of(models, make_optimizer)
        logger.info("Memory before activations: %s.", self.static)

    def figures(self) -> dict[str, Any]:
        """The stage's entry in metrics.json, in bytes; stages that train nothing have a measured peak only."""
        measured = {"measured_peak_bytes": self.peak}
        if self.static is None:
            return measured
        return {
            "weights_bytes": sum(self.static.weights.values()),
            "trainable_parameters": self.static.trainable_parameters,
            "gradients_bytes": self.static.gradients,
            "optimizer_bytes": self.static.optimizer,
            **measured,
        }

    def _sample(self) -> None:
        process, over = psutil.Process(), False
        while not over:
            over = self._over.wait(SAMPLE_SECONDS)
            self.peak = max(self.peak, process.memory_info().rss)


COLUMNS = {
    "weights": "weights_bytes",
    "gradients": "gradients_bytes",
    "optimizer": "optimizer_bytes",
    "peak": "measured_peak_bytes",
}


def memory_table(stages: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Weights, gradients, optimizer state and measured peak of each stage, from their entries in metrics.json."""
    table = Table(title="Memory", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("stage")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for stage, figures in stages.items():
        sizes = (figures["memory"].get(key) for key in COLUMNS.values())
        table.add_row(stage, *("-" if size is None else in_words(size) for size in sizes))
    return table
