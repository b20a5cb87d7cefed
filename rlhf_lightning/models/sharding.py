"""FSDP2 sharding: each process holds a part of every weight, gathered layer by layer."""

from __future__ import annotations

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shards a model in place (FSDP2), layer by layer where Transformers says what a layer is.

    Afterwards all processes run its forward together, or none.

    Args:
        mesh: the processes that share it.
    """
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in reversed(list(model.modules())):  # the innermost first
        if type(module).__name__ in layers:
            fully_shard(module, mesh=mesh, reshard_after_forward=True)
    # Also after the forward of the outermost part: rollouts are not followed by a backward that would do it.
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def is_sharded(model: nn.Module) -> bool:
    """True if `shard` was applied to a model."""
    return isinstance(model, FSDPModule)
