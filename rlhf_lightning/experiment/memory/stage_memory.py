"""What a stage will hold in memory, said before any weight is loaded, and what it has held, said when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from rich import box
from rich.console import RenderableType
from rich.table import Table

from rlhf_lightning.errors import RlhfError
from rlhf_lightning.experiment.memory.exhaustion import OTHER_RESULT, SAME_RESULT
from rlhf_lightning.models.footprint import Footprint
from rlhf_lightning.models.peak_memory import PeakMemory, available, baseline, give_back_freed
from rlhf_lightning.settings.run import StageName

logger = logging.getLogger(__name__)

OVERHEAD = 1.05
"""What an allocator holds for each byte that is in use."""
RUNTIME = 64 * 2**20
"""Bytes that libraries take once they compute."""
MIB, GIB = 2**20, 2**30
LARGE = 256 * MIB
"""From here on memory is given back at once, on a CPU."""

CANNOT = (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, AssertionError, OSError, RlhfError)
"""What an architecture that cannot be rehearsed raises: a run does not end for want of a forecast."""


@dataclass(slots=True)
class StageMemory:
    """One stage's memory.

    Attributes:
        peak: measured since the stage began.
        footprint: what was forecast; None where nothing was.
        estimate: bytes, with what the process holds anyway.
    """

    stage: StageName
    device: torch.device
    peak: PeakMemory = field(init=False)
    footprint: Footprint | None = None
    estimate: int | None = None

    def __post_init__(self) -> None:
        self.peak = PeakMemory(self.device)

    def forecast(self, measure: Callable[[], Footprint]) -> None:
        """Says what the stage will need, and warns where the machine has less.

        Args:
            measure: rehearses the stage.
        """
        before, left = baseline(self.device), available(self.device)
        try:
            self.footprint = measure()
        except CANNOT as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            logger.info("Memory: no estimate, since this model cannot be rehearsed without weights (%s).", reason)
            return
        if self.device.type == "cpu" and self.footprint.peak >= LARGE:
            give_back_freed()
        wanted = round(self.footprint.peak * OVERHEAD) + RUNTIME
        self.estimate = before + wanted
        for line in described(self.footprint, self.estimate, before):
            logger.info("%s", line)
        if left is not None and wanted > left:
            logger.warning(
                "Stage %s will need about %s more memory, and %s are left. Lower %s (same result), or %s.",
                self.stage,
                in_words(wanted),
                in_words(left),
                " or ".join(SAME_RESULT[self.stage]),
                " or ".join(OTHER_RESULT[self.stage]),
            )

    def figures(self) -> dict[str, Any]:
        """The stage's entry in metrics.json: bytes, estimated and measured."""
        measured = {"measured_peak_bytes": self.peak.bytes}
        if self.footprint is None or self.estimate is None:
            return {"estimated_bytes": None, **measured}
        return {
            "estimated_bytes": self.estimate,
            **measured,
            "weights_bytes": sum(self.footprint.weights.values()),
            "trainable_parameters": self.footprint.trainable,
            "optimizer_bytes": self.footprint.optimizer,
            "largest_phase": self.footprint.largest_phase,
        }


def described(footprint: Footprint, estimate: int, before: int) -> list[str]:
    """A forecast in lines of a log."""
    weights = ", ".join(f"{name} {in_words(size)}" for name, size in footprint.weights.items())
    return [
        f"Memory, estimated: {in_words(estimate)} at most, in phase {footprint.largest_phase} "
        f"({in_words(before)} are in use now).",
        f"  weights {in_words(sum(footprint.weights.values()))} ({weights})",
        f"  {footprint.trainable:,} trainable parameters: gradients {in_words(footprint.gradients)}, optimizer "
        f"{in_words(footprint.optimizer)}; activations {in_words(footprint.activations)}",
    ]


def in_words(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / GIB:.2f} GiB" if size >= GIB else f"{size / MIB:.0f} MiB"


def memory_table(stages: Mapping[str, Mapping[str, Any]]) -> RenderableType:
    """Estimate and measured peak of each stage, from their entries in metrics.json."""
    table = Table(title="Memory at most", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    for column in ("stage", "estimated", "measured"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage, figures in stages.items():
        memory = figures["memory"]
        estimated = memory["estimated_bytes"]
        table.add_row(stage, "-" if estimated is None else in_words(estimated), in_words(memory["measured_peak_bytes"]))
    return table
