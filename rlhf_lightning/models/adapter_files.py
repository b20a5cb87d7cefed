"""Adapter artifacts: only the trained weights, in PEFT's format, opened on the base model with the same weights."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils.peft_utils import ADAPTER_SAFE_WEIGHTS_NAME

from rlhf_lightning.errors import ArtifactError
from rlhf_lightning.models.adapters import (
    VECTORS,
    adapter_config,
    adapter_state,
    add_adapter,
    load_adapter_state,
    switch,
)
from rlhf_lightning.models.hub import ADAPTER_CONFIG_NAME
from rlhf_lightning.models.top_layers import (
    PEFT_PREFIX,
    load_trained_state,
    top_layers,
    top_layers_config,
    trained_layers,
)

if TYPE_CHECKING:
    from peft import PeftConfig
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


logger = logging.getLogger(__name__)

BASE_FILE = "base_model.json"
"""Beside PEFT's files: the identity of the base, and a classifier's labels."""

MAGNITUDE, MAGNITUDE_ON_DISK = "lora_magnitude_vector", "lora_magnitude_vector.weight"
"""Of DoRA. PEFT writes the first and reads both; Transformers alone finds its place for the second only."""


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """Content of an adapter's directory.

    Attributes:
        config: PEFT's.
        tensors: the weights, under PEFT's names.
        identity: of the base; None if this project did not write the directory.
        labels: of a classifier's outputs; empty for a policy.
    """

    directory: Path
    config: PeftConfig
    tensors: Mapping[str, Tensor]
    identity: BaseIdentity | None
    labels: tuple[str, ...]

    @property
    def base(self) -> str:
        """The directory or hub id of the base.

        Raises:
            ArtifactError: the directory does not say.
        """
        name: str | None = self.config.base_model_name_or_path
        if not name:
            raise ArtifactError(
                "The adapter does not say which model it belongs to.",
                where=str(self.directory / ADAPTER_CONFIG_NAME),
                fix="set base_model_name_or_path there to the directory or hub id of its base",
            )
        return name

    @property
    def layers(self) -> int | None:
        """Number of top layers it holds; None for an ordinary adapter."""
        from peft import LoraConfig

        return trained_layers(self.config) if isinstance(self.config, LoraConfig) else None

    @property
    def head(self) -> dict[str, Tensor]:
        """The weights of a reward model's head."""
        prefix = _head_prefix(self.config)
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def read_adapter(directory: Path) -> AdapterFiles:
    """Read an adapter's directory.

    Raises:
        ArtifactError: its files are missing or damaged.
    """
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(directory))
        tensors = load_file(directory / ADAPTER_SAFE_WEIGHTS_NAME)
        ours = (
            json.loads((directory / BASE_FILE).read_text(encoding="utf-8"))
            if (directory / BASE_FILE).is_file()
            else None
        )
        identity = BaseIdentity(**ours["base"]) if ours else None
        labels = tuple(ours["labels"]) if ours else ()
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise ArtifactError(
            f"The adapter cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}",
            where=str(directory),
            fix="name a directory with adapter_config.json and adapter_model.safetensors, as PEFT writes them",
        ) from error
    files = AdapterFiles(directory, config, tensors, identity, labels)
    if not labels and files.head:
        labels = tuple(f"LABEL_{index}" for index in range(len(files.head["weight"])))
    return replace(files, labels=labels)


def put_on(model: PreTrainedModel, files: AdapterFiles, name: str) -> None:
    """Load an adapter onto its base, active and frozen; a top-layers artifact replaces the base's layers.

    Args:
        model: the base, alone or as the trunk of a classifier, whose head is replaced too.
        name: of the adapter.

    Raises:
        ArtifactError: it was trained on another base.
    """
    require_base(model, files)
    remember_base(model, files.layers or 0)
    if files.layers is not None:
        put_layers_on(model, files)
    else:
        put_adapter_on(model, files, name)
        switch(model, name)
    model.requires_grad_(False)


def put_adapter_on(model: PreTrainedModel, files: AdapterFiles, name: str) -> None:
    """Load an adapter onto a trunk, inactive, and its head beside the trunk.

    Raises:
        ArtifactError: its weights are not those of such an adapter on such a model.
    """
    from peft import PromptTuningConfig

    prefix = f"{PEFT_PREFIX}{model.base_model_prefix}."
    state = {
        path.removeprefix(prefix).replace(MAGNITUDE_ON_DISK, MAGNITUDE): tensor
        for path, tensor in files.tensors.items()
        if path == VECTORS or path.startswith(prefix)
    }
    if isinstance(files.config, PromptTuningConfig) and VECTORS not in state:
        raise ArtifactError(
            f"The adapter holds no {VECTORS}.", where=str(files.directory), fix="train it again, or name another"
        )
    add_adapter(model, files.config, name, state.get(VECTORS))
    load_adapter_state(model, name, state)
    if files.head and _head(model):
        model.get_submodule("score").load_state_dict(files.head)


def put_layers_on(model: PreTrainedModel, files: AdapterFiles) -> None:
    """Reset the progress counts that Lightning raises before the hooks that save: of a batch or epoch not begun."""
    assert files.layers is not None
    own_head = {f"{PEFT_PREFIX}score.{path}": weight for path, weight in _head(model).items()}
    load_trained_state(model, files.layers, {**own_head, **files.tensors})


def write_adapter(
    model: PreTrainedModel, name: str, directory: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Writes the adapter of that name, and the head of a classifier, as PEFT does.

    Args:
        weights: of the whole model, where they had to be put together from shards.
    """
    from peft import TaskType

    prefix = f"{model.base_model_prefix}."
    of_trunk = {
        path.removeprefix(prefix): tensor for path, tensor in (weights or {}).items() if path.startswith(prefix)
    }
    state = adapter_state(model, name, of_trunk or None)
    tensors = {
        path if path == VECTORS else f"{PEFT_PREFIX}{prefix}{path.replace(MAGNITUDE, MAGNITUDE_ON_DISK)}": tensor
        for path, tensor in state.items()
    }
    config = type(adapter_config(model, name))(**adapter_config(model, name).to_dict())
    config.base_model_name_or_path = base_name(model)
    config.revision = getattr(model.config, "_commit_hash", None)
    config.inference_mode = True
    of_head = _head(model)
    config.task_type = TaskType.SEQ_CLS if of_head else TaskType.CAUSAL_LM
    if of_head:
        whole_head = {path: (weights or {}).get(f"score.{path}", weight) for path, weight in of_head.items()}
        tensors |= {f"{_head_prefix(config)}{path}": weight for path, weight in whole_head.items()}
        config.modules_to_save = ["score"]  # type: ignore[attr-defined]  # every kind of adapter has it
    _write(model, config, tensors, directory)


def write_top_layers(model: PreTrainedModel, layers: int, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Writes the top layers of a model, and the head of a classifier.

    Args:
        tensors: what `trained_state` gave.
    """
    config = top_layers_config(model, layers)
    config.base_model_name_or_path = base_name(model)
    config.revision = getattr(model.config, "_commit_hash", None)
    _write(model, config, tensors, directory)


def require_base(model: PreTrainedModel, files: AdapterFiles) -> None:
    """Check that an adapter was trained on that base. Of another dtype only the shapes can be compared.

    Raises:
        ArtifactError: it was not.
    """
    if files.identity is None:
        return
    remembered = remembered_base(model)
    replaced = files.layers or 0
    found = remembered.identity if remembered is not None else identity_of(base_weights(model, replaced))
    if not belongs_to(files.identity, found):
        raise ArtifactError(
            f"The adapter was trained on another base model: {base_name(model)} has "
            + ("other shapes." if files.identity.shapes != found.shapes else "the same shapes and other weights."),
            where=str(files.directory),
            fix="put the base back that the adapter was trained on, or train the adapter again",
        )


def _head_prefix(config: PeftConfig) -> str:
    """PEFT's prefix of the names of a head's weights; a model with virtual tokens is wrapped once less."""
    from peft import PromptTuningConfig

    return "base_model.score." if isinstance(config, PromptTuningConfig) else f"{PEFT_PREFIX}score."


def _head(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights of a classifier's head; none of a policy."""
    head = getattr(model, "score", None)
    return head.state_dict() if isinstance(head, nn.Module) else {}


def _write(model: PreTrainedModel, config: PeftConfig, tensors: Mapping[str, Tensor], directory: Path) -> None:
    remembered = remembered_base(model)
    assert remembered is not None
    save_file(
        {path: tensor.cpu().contiguous() for path, tensor in tensors.items()}, directory / ADAPTER_SAFE_WEIGHTS_NAME
    )
    config.save_pretrained(str(directory))
    names = model.config.id2label or {}
    ours = {"base": asdict(remembered.identity), "labels": list(names.values()) if _head(model) else []}
    (directory / BASE_FILE).write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
