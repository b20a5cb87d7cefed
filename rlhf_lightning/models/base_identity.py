"""Identity of an adapter's base model: its weights, not only its name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from rlhf_lightning.models.top_layers import top_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLED = 256
"""Values of each weight that an identity looks at."""


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """Identity of a base model, beyond its name.

    Attributes:
        dtype: of the weights when they were looked at.
        shapes: a hash of the names and shapes of its weights.
        values: a hash of some of the values of each.
    """

    dtype: str
    shapes: str
    values: str


def belongs_to(recorded: BaseIdentity, found: BaseIdentity) -> bool:
    """True if both identities are of the same base."""
    return recorded.shapes == found.shapes and (recorded.dtype != found.dtype or recorded.values == found.values)


def base_name(model: PreTrainedModel) -> str:
    """The hub id of a model, or the whole path of its directory."""
    name: str = model.name_or_path or ""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def identity_of(weights: Mapping[str, Tensor]) -> BaseIdentity:
    """The identity of a base with these weights."""
    shapes, values = hashlib.sha256(), hashlib.sha256()
    dtypes = set()
    for name, weight in sorted(weights.items()):
        shapes.update(f"{name}{tuple(weight.shape)}".encode())
        flat = weight.detach().flatten()
        sampled = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]
        values.update(sampled.float().cpu().numpy().tobytes())
        dtypes.add(str(weight.dtype).removeprefix("torch."))
    return BaseIdentity("+".join(sorted(dtypes)), shapes.hexdigest(), values.hexdigest())


def base_weights(model: PreTrainedModel, replaced: int = 0) -> dict[str, Tensor]:
    """The weights of a trunk that adapters leave alone, by name.

    Args:
        replaced: how many top layers are not the base's.
    """
    trunk, prefix = model.base_model, f"{model.base_model_prefix}."
    above = tuple(f"{path.removeprefix(prefix)}." for path in top_layers(model, replaced)) if replaced else ()
    return {name: weight for name, weight in trunk.named_parameters() if not (above and name.startswith(above))}


@dataclass(frozen=True, slots=True)
class RememberedBase:
    """Identity of a trunk before training.

    Attributes:
        identity: of what is not replaced.
        replaced: how many of its top layers are not the base's.
    """

    identity: BaseIdentity
    replaced: int


def remember_base(model: PreTrainedModel, replaced: int = 0) -> None:
    """Record the identity of a trunk's weights before training: afterwards they may be sharded.

    Args:
        replaced: how many top layers will be trained as they are, rather than through an adapter.
    """
    _note(model, RememberedBase(identity_of(base_weights(model, replaced)), replaced))


def remembered_base(model: PreTrainedModel) -> RememberedBase | None:
    """The record that `remember_base` made; None if nothing is frozen."""
    remembered = getattr(model.base_model, "remembered_base", None)
    assert remembered is None or isinstance(remembered, RememberedBase)
    return remembered


def forget_base(model: PreTrainedModel) -> None:
    """Remove that record: a model trained in full needs none."""
    _note(model, None)


def _note(model: PreTrainedModel, remembered: RememberedBase | None) -> None:
    model.base_model.remembered_base = remembered  # type: ignore[assignment]  # attributes are typed as modules
