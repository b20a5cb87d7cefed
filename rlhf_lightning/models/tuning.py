"""Select the trained parameters of a model, as the config's group `peft` says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.adapter_files import forget_base, remember_base, remembered_base
from rlhf_lightning.models.adapters import (
    adapter_config,
    adapter_names,
    add_adapter,
    has_transposed_weights,
    linear_layers,
    merge_adapter,
    train_adapter,
)
from rlhf_lightning.models.settings import Ia3, Lora, NoPeft, PeftSettings, PromptTuning, QLora, TopLayers
from rlhf_lightning.models.top_layers import train_top_layers
from rlhf_lightning.models.virtual_tokens import vectors_of_text, vectors_of_vocabulary

if TYPE_CHECKING:
    from peft import PeftConfig


def tune(model: PreTrainedModel, peft: PeftSettings, name: str, tokenizer: PreTrainedTokenizerBase, seed: int) -> None:
    """Lets a model train as `peft` says, and freezes the rest of it.

    The head of a classifier is always trained, an LM head only as part of a whole model.
    A model that comes with an adapter of that kind goes on with it; without one it gets a new one.

    Args:
        name: of the adapter.
        tokenizer: reads `peft.init_text`.
        seed: of virtual tokens that start as random words.

    Raises:
        ArtifactError: it comes with an adapter of another kind.
        ModelError: it has no such layers.
    """
    if isinstance(peft, NoPeft):
        merge_adapter(model)
        forget_base(model)
    elif isinstance(peft, TopLayers):
        _require_same_layers(model, peft.layers, name)
        if remembered_base(model) is None:
            remember_base(model, peft.layers)
        train_top_layers(model, peft.layers)
    else:
        config = new_config(model, peft)
        if name in adapter_names(model):
            _require_same_kind(model, config, name)
        else:
            _require_same_layers(model, 0, name)
            remember_base(model)
            add_adapter(model, config, name, _first_vectors(model, peft, tokenizer, seed))
        train_adapter(model, name)
        for head in model.children():
            if head is not model.base_model:
                head.requires_grad_(head is not model.get_output_embeddings())


def new_config(model: PreTrainedModel, peft: Lora | QLora | Ia3 | PromptTuning) -> PeftConfig:
    """PEFT's own description of an adapter.

    Raises:
        ModelError: which layers IA3 should scale is not known for this architecture.
    """
    from peft import IA3Config, LoraConfig, PromptTuningConfig
    from peft.utils.constants import (
        TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
    )

    if isinstance(peft, PromptTuning):
        return PromptTuningConfig(num_virtual_tokens=peft.virtual_tokens)
    if isinstance(peft, Ia3):
        kind = model.config.model_type
        targets = TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
        if targets is None:
            raise ModelError(
                f"Which layers of a {kind} model IA3 should scale is not known.", where="peft=ia3", fix="use peft=lora"
            )
        return IA3Config(
            target_modules=targets,
            feedforward_modules=TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[kind],
            fan_in_fan_out=has_transposed_weights(model),
        )
    return LoraConfig(
        r=peft.rank,
        lora_alpha=peft.alpha,  # type: ignore[arg-type]  # PEFT's annotation says int; it only divides
        target_modules=peft.targets or linear_layers(model),
        use_dora=isinstance(peft, Lora) and peft.kind == "dora",
        fan_in_fan_out=has_transposed_weights(model),
    )


def _first_vectors(
    model: PreTrainedModel, peft: PeftSettings, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Tensor | None:
    if not isinstance(peft, PromptTuning):
        return None
    if peft.init_text is None:
        return vectors_of_vocabulary(model, peft.virtual_tokens, seed)
    return vectors_of_text(model, tokenizer, peft.init_text, peft.virtual_tokens)


def _require_same_kind(model: PreTrainedModel, wanted: PeftConfig, name: str) -> None:
    found = adapter_config(model, name)
    if _kind(found) != _kind(wanted):
        raise _other_kind(_described(found), _described(wanted))


def _require_same_layers(model: PreTrainedModel, wanted: int, name: str) -> None:
    """An artifact must hold all that is not its base's."""
    remembered = remembered_base(model)
    replaced = remembered.replaced if remembered is not None else wanted
    if name in adapter_names(model):
        raise _other_kind(_described(adapter_config(model, name)), f"{wanted} top layers")
    if replaced != wanted:
        raise _other_kind(f"{replaced} top layers", f"{wanted} top layers" if wanted else "an adapter")


def _other_kind(found: str, wanted: str) -> ArtifactError:
    """Going on with another kind than what is there would lose what is there."""
    return ArtifactError(
        f"The model comes with an adapter ({found}), and peft asks for another ({wanted}).",
        where="peft",
        fix="choose the adapter's own peft settings, or merge it first: rlhf export RUN_DIR --merge --to DIR",
    )


def _kind(config: PeftConfig) -> dict[str, object]:
    """Properties that two adapters must share for one to continue training from the other."""
    compared = (
        "peft_type",
        "r",
        "lora_alpha",
        "use_dora",
        "target_modules",
        "feedforward_modules",
        "num_virtual_tokens",
    )
    found = {key: getattr(config, key, None) for key in compared}
    return {key: sorted(value) if isinstance(value, set | list) else value for key, value in found.items()}


def _described(config: PeftConfig) -> str:
    from peft import LoraConfig, PromptTuningConfig

    if isinstance(config, LoraConfig):
        targets = ", ".join(sorted(config.target_modules or ()))
        return f"{'dora' if config.use_dora else 'lora'}, rank {config.r}, alpha {config.lora_alpha:g}, on {targets}"
    if isinstance(config, PromptTuningConfig):
        return f"prompt tuning, {config.num_virtual_tokens} virtual tokens"
    return "ia3"
