"""Progress bars and memory of a stage: static memory counted, the peak measured, out-of-memory errors explained."""

from __future__ import annotations

import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import psutil
import torch
from rich import box
from rich.console import Console, RenderableType
from rich.progress import track as rich_track
from rich.table import Table
from torch import Tensor, nn

from rlhf_lightning.algorithms.optimization import OptimizerFactory
from rlhf_lightning.distributed import rank
from rlhf_lightning.errors import MemoryExhaustedError
from rlhf_lightning.stages.declaration import MemoryRelief

Item = TypeVar("Item")


def track(items: Sequence[Item], description: str) -> Iterable[Item]:
    """The items, with a Rich progress bar on standard error where that is a terminal: one bar for all processes."""
    if not sys.stderr.isatty() or rank() > 0:
        return items
    return rich_track(items, description=description, console=Console(stderr=True), transient=True)


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StaticMemory:
    """Bytes of one process; under FSDP those of its shards.

    Attributes:
        weights: by model, buffers included; a tensor that several models share counts for the first of them.
        trainable_parameters: number of trained weights.
        gradients: of the trained weights, in their dtype.
        optimizer: state; None where it is not known before the first step.
    """

    weights: Mapping[str, int]
    trainable_parameters: int
    gradients: int
    optimizer: int | None

    @classmethod
    def of(cls, models: Mapping[str, nn.Module], make_optimizer: OptimizerFactory) -> StaticMemory:
        """Count models as they are, and the gradients and optimizer state that training them will add.

        Args:
            models: all that the stage holds, by name.
            make_optimizer: the optimizer takes a step on copies without data.
        """
        weights: dict[str, int] = {}
        seen: dict[int, Tensor] = {}
        for name, model in models.items():
            own = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in seen}
            weights[name] = _bytes(own.values())
            seen |= own
        trained = [_local(tensor) for tensor in seen.values() if tensor.requires_grad]
        parameters = sum(tensor.numel() for tensor in trained)
        return cls(weights, parameters, _bytes(trained), _optimizer_bytes(trained, make_optimizer))

    def __str__(self) -> str:
        by_model = ", ".join(f"{name} {format_bytes(size)}" for name, size in self.weights.items())
        optimizer = "of unknown size" if self.optimizer is None else format_bytes(self.optimizer)
        return (
            f"weights {format_bytes(sum(self.weights.values()))} ({by_model}), "
            f"gradients {format_bytes(self.gradients)}, optimizer {optimizer}"
        )


def format_bytes(size: int) -> str:
    """A number of bytes as text with a unit."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"


def _optimizer_bytes(trained: Iterable[Tensor], make_optimizer: OptimizerFactory) -> int | None:
    # The state of one tensor depends on its shape and dtype, so one of each kind takes the step for all of them.
    kinds = Counter((tensor.shape, tensor.dtype) for tensor in trained)
    copies = {kind: nn.Parameter(torch.empty(kind[0], dtype=kind[1], device="meta")) for kind in kinds}
    for copy in copies.values():
        copy.grad = torch.empty_like(copy)
    optimizer = make_optimizer(copies.values(), lr=1e-3)
    try:
        optimizer.step()
    except RuntimeError as error:  # raised by a meta tensor whose data is asked for, as Adafactor does
        logger.info("Memory: the optimizer's state is not known before its first step (%s).", error)
        return None
    return sum(
        number * _bytes(value for value in optimizer.state[copies[kind]].values() if isinstance(value, Tensor))
        for kind, number in kinds.items()
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(_local(tensor).nbytes for tensor in tensors)


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor  # takes most of a second

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


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
        table.add_row(stage, *("-" if size is None else format_bytes(size) for size in sizes))
    return table


SAYINGS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
"""Messages of the plain RuntimeErrors that torch raises when memory runs out."""


@contextmanager
def memory_explained(stage: str, relief: MemoryRelief, memory: StageMemory) -> Iterator[None]:
    """Turns an out-of-memory error within a `with` block into one that names the keys which lower the use of memory.

    Raises:
        MemoryExhaustedError: in place of torch's, CUDA's and Python's own.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _exhausted(stage, relief, memory, error) from error
    except RuntimeError as error:
        if any(saying in str(error) for saying in SAYINGS):
            raise _exhausted(stage, relief, memory, error) from error
        raise


def _exhausted(stage: str, relief: MemoryRelief, memory: StageMemory, error: BaseException) -> MemoryExhaustedError:
    same, other = (
        [f"{stage}{key}" if key.startswith(".") else key for key in keys]
        for keys in (relief.same_result, relief.other_result)
    )
    reason = " ".join(str(error).split())[:200].rstrip(".")
    static = f" Whatever the batches are, it holds {memory.static}." if memory.static is not None else ""
    return MemoryExhaustedError(
        f"Stage {stage} ran out of memory{f': {reason}' if reason else ''}.{static}",
        where=f"stage {stage}",
        fix=f"lower {' or '.join(same)}, with which the run can go on (resume=...); "
        f"in a new run also {', '.join(other)}",
    )
