"""Out-of-memory errors that name the config keys which lower the use of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rlhf_lightning.errors import MemoryExhaustedError
from rlhf_lightning.experiment.memory.stage_memory import StageMemory
from rlhf_lightning.stages.declaration import Relief

SAYINGS = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory", "out of memory")
"""Messages of the plain RuntimeErrors that torch raises when memory runs out."""


@contextmanager
def memory_explained(stage: str, relief: Relief, memory: StageMemory) -> Iterator[None]:
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


def _exhausted(stage: str, relief: Relief, memory: StageMemory, error: BaseException) -> MemoryExhaustedError:
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
