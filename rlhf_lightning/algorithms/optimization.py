"""Optimizers and learning-rate schedules of the algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from rlhf_lightning.stages.supervised import SupervisedLoop


class OptimizerFactory(Protocol):
    """Makes an optimizer; everything but parameters and learning rate is decided by the config's optimizer group."""

    def __call__(self, params: Iterable[nn.Parameter] | Iterable[dict[str, Any]], *, lr: float) -> Optimizer: ...


def with_schedule(
    optimizer: Optimizer, factor: Callable[[int], float], interval: Literal["step", "epoch"] = "step"
) -> dict[str, Any]:
    """Return value of `configure_optimizers`: the optimizer, its learning rate multiplied by `factor(interval)`."""
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": interval, "name": "learning_rate"},
    }


def supervised_optimizer(
    module: nn.Module, make_optimizer: OptimizerFactory, settings: SupervisedLoop, total_steps: int
) -> dict[str, Any]:
    """Return value of `configure_optimizers` for supervised training: linear warm-up, then linear decay to 0.

    Args:
        module: whose parameters are trained.
        total_steps: optimizer steps of the whole run.
    """
    optimizer = make_optimizer(trainable_parameters(module), lr=settings.learning_rate)
    return with_schedule(optimizer, linear_decay(total_steps, round(settings.warmup_fraction * total_steps)))


def linear_decay(total_steps: int, warmup_steps: int = 0) -> Callable[[int], float]:
    """Linear from 0 to 1 over the warm-up, then linear to 0 at `total_steps`.

    The first step is never wasted on a learning rate of 0.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return factor


def trainable_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
