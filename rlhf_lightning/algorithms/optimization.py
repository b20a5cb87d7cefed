"""How the algorithms' optimizers and learning-rate schedules are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class OptimizerFactory(Protocol):
    """Makes an optimizer; everything but parameters and learning rate is decided by the config's optimizer group."""

    def __call__(self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr: float) -> Optimizer: ...


def scheduled(
    optimizer: Optimizer, factor: Callable[[int], float], interval: Literal["step", "epoch"] = "step"
) -> dict[str, Any]:
    """What `configure_optimizers` returns: the optimizer, its learning rate multiplied by `factor(interval)`."""
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": interval, "name": "learning_rate"},
    }


def linear_decay(total_steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Linear from 0 to 1 over the warm-up, then linear to 0 at `total_steps`.

    The first step is never wasted on a learning rate of 0.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return factor


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
