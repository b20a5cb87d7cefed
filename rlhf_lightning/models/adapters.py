"""Named adapters on a frozen trunk, at most one of them active.

They are PEFT's, put into the plain Transformers model (LoRA and its kin in its linear layers, virtual tokens in front
of what it reads), so everything that takes a model takes one with adapters. PEFT is imported where there is an adapter:
a run without one does without it.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.virtual_tokens import attach_virtual_tokens, virtual_tokens

if TYPE_CHECKING:
    from peft import PeftConfig
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers import PreTrainedModel

POLICY, REFERENCE, REWARD, CRITIC = "policy", "reference", "reward", "critic"
"""The names of the adapters that PPO may put on one trunk."""

Role = Callable[[], AbstractContextManager[None]]
"""Context manager around each forward pass of a model on a shared trunk: activates its own adapter."""

VECTORS = "prompt_embeddings"
"""PEFT's name for the weights of virtual tokens."""


def add_adapter(model: PreTrainedModel, config: PeftConfig, name: str, vectors: Tensor | None = None) -> None:
    """Add a new adapter to a model's trunk, frozen and inactive. All else is unchanged.

    An update of weights starts as no change at all. Adapters are held in float32 whatever the trunk is in: in half the
    precision small steps would be lost.

    Args:
        name: that no other adapter on this trunk has.
        vectors: (N, hidden) the virtual tokens, for prompt tuning.

    Raises:
        ModelError: the model has no such layers.
    """
    from peft import PromptTuningConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import cast_adapter_dtype

    trunk = model.base_model
    flags = [(parameter, parameter.requires_grad) for parameter in trunk.parameters()]
    before = active_adapter(model)
    if isinstance(config, PromptTuningConfig):
        assert vectors is not None
        attach_virtual_tokens(model, name, vectors)
        _configs(trunk)[name] = config
    else:
        _require_targets(model, config)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Already found a `peft_config`.*")  # several are meant here
            inject_adapter_in_model(config, trunk, name)
        cast_adapter_dtype(trunk, name)
    for parameter, trained in flags:
        parameter.requires_grad_(trained)
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(False)
    switch(model, before)


def copy_adapter(model: PreTrainedModel, source: str, target: str) -> None:
    """Add a second adapter with the weights of the first, frozen and inactive."""
    state = adapter_state(model, source)
    add_adapter(model, adapter_config(model, source), target, state.get(VECTORS))
    load_adapter_state(model, target, state)


def train_adapter(model: PreTrainedModel, name: str) -> None:
    """Activate one adapter and train it alone."""
    model.base_model.requires_grad_(False)
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(True)
    switch(model, name)


def adapter_names(model: PreTrainedModel) -> list[str]:
    """The adapters on a model's trunk."""
    return list(getattr(model.base_model, "peft_config", {}))


def adapter_config(model: PreTrainedModel, name: str) -> PeftConfig:
    """PEFT config of the named adapter."""
    return _configs(model.base_model)[name]


def adapter_parameters(model: PreTrainedModel, name: str) -> list[nn.Parameter]:
    """The weights of one adapter."""
    return [parameter for path, parameter in model.base_model.named_parameters() if name in path.split(".")]


def adapter_state(model: PreTrainedModel, name: str, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of one adapter under PEFT's names, as seen from the trunk.

    Args:
        weights: of the whole trunk, where they had to be put together from shards.
    """
    from peft import PromptTuningConfig, get_peft_model_state_dict

    trunk = model.base_model
    if isinstance(adapter_config(model, name), PromptTuningConfig):
        return {VECTORS: (weights or trunk.state_dict())[f"virtual_tokens.sets.{name}"]}
    state: dict[str, Tensor] = get_peft_model_state_dict(
        trunk, state_dict=dict(weights) if weights else None, adapter_name=name, save_embedding_layers=False
    )
    return state


def load_adapter_state(model: PreTrainedModel, name: str, state: Mapping[str, Tensor]) -> None:
    """Load weights from `adapter_state` into an adapter.

    Raises:
        ArtifactError: they are not those of such an adapter on such a model.
    """
    from peft import set_peft_model_state_dict

    expected = adapter_state(model, name)
    wrong = sorted(
        path for path in expected.keys() | state.keys() if _shape(expected.get(path)) != _shape(state.get(path))
    )
    if wrong:
        raise ArtifactError(
            f"The adapter does not fit this base: {len(wrong)} weights are missing on one side or of another shape, "
            f"{wrong[0]} among them (adapter {_shape(state.get(wrong[0]))}, base {_shape(expected.get(wrong[0]))}).",
            where=model.name_or_path or type(model).__name__,
            fix="name the base that the adapter was trained on",
        )
    if VECTORS in state:
        with torch.no_grad():
            model.base_model.get_parameter(f"virtual_tokens.sets.{name}").copy_(state[VECTORS])
    else:
        set_peft_model_state_dict(model.base_model, dict(state), adapter_name=name)


@contextmanager
def active(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Context manager: the model with one adapter active, or with none.

    What is trained does not change: `requires_grad` is left as it is.

    Args:
        name: of the adapter; None switches all off.
    """
    before = active_adapter(model)
    switch(model, name)
    try:
        yield
    finally:
        switch(model, before)


def switch(model: PreTrainedModel, name: str | None) -> None:
    """Activate one adapter and deactivate all others.

    Args:
        name: of the adapter; None switches all off.
    """
    assert name is None or name in adapter_names(model), f"no adapter {name!r} among {adapter_names(model)}"
    for layer in tuner_layers(model):
        # PEFT makes the active adapter trainable, and the others not.
        assert isinstance(layer, nn.Module)
        flags = [(parameter, parameter.requires_grad) for parameter in layer.parameters()]
        if name is None:
            layer.enable_adapters(False)
        else:
            layer.set_adapter([name])
            layer._disable_adapters = False
        for parameter, trained in flags:
            parameter.requires_grad_(trained)
    tokens = virtual_tokens(model)
    if tokens is not None:
        tokens.switch(name)


def active_adapter(model: PreTrainedModel) -> str | None:
    """The active adapter; None if there is none."""
    tokens = virtual_tokens(model)
    if tokens is not None:
        return tokens.active_set
    for layer in tuner_layers(model):
        return None if layer.disable_adapters else layer.active_adapters[0]
    return None


def merge_adapter(model: PreTrainedModel) -> None:
    """Merge the active adapter into the model's weights, and remove all adapters. All weights become trainable.

    Raises:
        ModelError: virtual tokens are no change of weights.
    """
    if virtual_tokens(model) is not None:
        raise ModelError(
            "Virtual tokens cannot be merged: they are no change of the model's weights.",
            where=model.name_or_path or type(model).__name__,
            fix="go on with peft=prompt_tuning, or start from the base model",
        )
    if adapter_names(model):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, layer in list(model.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
                parent, _, child = path.rpartition(".")
                setattr(model.get_submodule(parent), child, layer.get_base_layer())
        del model.base_model.peft_config
    model.requires_grad_(True)


def linear_layers(model: PreTrainedModel) -> list[str]:
    """The names, as `q_proj`, of the linear layers in a model's trunk: what LoRA can change."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from transformers.pytorch_utils import Conv1D

    own = _own_modules(model)
    linear = (path for path, module in own.items() if isinstance(module, BaseTunerLayer | nn.Linear | Conv1D))
    return list(dict.fromkeys(path.rpartition(".")[2] for path in linear))


def tuner_layers(model: PreTrainedModel) -> list[BaseTunerLayer]:
    """The layers that adapters were put around."""
    if not adapter_names(model):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.base_model.modules() if isinstance(module, BaseTunerLayer)]


def has_transposed_weights(model: PreTrainedModel) -> bool:
    """True if its linear layers store (in, out) weights, as GPT-2's do."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.base_model.modules())


def _require_targets(model: PreTrainedModel, config: PeftConfig) -> None:
    named = getattr(config, "target_modules", None) or []
    known = linear_layers(model)
    paths = list(_own_modules(model))
    for target in sorted({named} if isinstance(named, str) else named):
        if target.rpartition(".")[2] in known and any(f".{path}".endswith(f".{target}") for path in paths):
            continue
        near = difflib.get_close_matches(target, known, n=1)
        raise ModelError(
            f"{type(model).__name__} has no linear layer {target!r} in its blocks"
            + (f"; did you mean {near[0]!r}?" if near else "."),
            where="peft.targets",
            fix=f"choose among {', '.join(known)}, or set peft.targets=null for all of them",
        )


def _own_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules of a trunk by path, without what is inside layers that adapters were put around."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    modules = dict(model.base_model.named_modules())
    within = tuple(f"{path}." for path, module in modules.items() if isinstance(module, BaseTunerLayer))
    return {path: module for path, module in modules.items() if path and not path.startswith(within)}


def _configs(trunk: nn.Module) -> dict[str, PeftConfig]:
    """By adapter; where PEFT keeps them too."""
    if not hasattr(trunk, "peft_config"):
        trunk.peft_config = {}  # type: ignore[assignment]  # a module's attributes are typed as modules
    configs = trunk.peft_config
    assert isinstance(configs, dict)
    return configs


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)
