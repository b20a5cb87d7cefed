"""Adapters of every kind whose weights matter, as training leaves them, on tiny models in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import TypeAdapter
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.models.adapters import POLICY, REWARD, adapter_parameters
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy, new_classifier, save_classifier, save_policy
from rlhf_lightning.models.settings import PeftSettings, TopLayers
from rlhf_lightning.models.tuning import tune

KINDS = ("lora", "dora", "ia3", "prompt_tuning", "top_layers")
"""All but `none`, and `qlora`, which needs a GPU."""

UPDATES_OF_WEIGHTS = ("lora", "dora", "ia3")
"""The adapters that can be merged and that start as no change."""

VALUES: dict[str, dict[str, object]] = {
    "none": {},
    "lora": {"rank": 4, "alpha": 8.0, "targets": None},
    "dora": {"rank": 4, "alpha": 8.0, "targets": None},
    "ia3": {},
    "prompt_tuning": {"virtual_tokens": 3, "init_text": None},
    "top_layers": {"layers": 1, "reuse_trunk": False},
}


def peft(kind: str, **values: object) -> PeftSettings:
    """Settings of that kind."""
    factor = {} if kind == "none" else {"learning_rate_factor": 1.0}
    settings: PeftSettings = TypeAdapter(PeftSettings).validate_python(
        {"kind": kind, **VALUES[kind], **factor, **values}
    )
    return settings


@torch.no_grad()
def disturb(model: PreTrainedModel, name: str | None = None, seed: int = 1, by: float = 0.2) -> PreTrainedModel:
    """Adds noise to the weights that are trained, or to those of an adapter: what a training did to them."""
    generator = torch.Generator().manual_seed(seed)
    own = adapter_parameters(model, name) if name is not None else [p for p in model.parameters() if p.requires_grad]
    for parameter in own:
        parameter.add_(by * torch.randn(parameter.shape, generator=generator))
    return model


def write_base(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Path:
    """A whole model with its tokenizer."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def layers_of(settings: PeftSettings) -> int | None:
    return settings.layers if isinstance(settings, TopLayers) else None


def tuned_policy(
    base: Path, settings: PeftSettings, tokenizer: PreTrainedTokenizerBase, seed: int = 1
) -> PreTrainedModel:
    """The policy that a training on `base` left."""
    torch.manual_seed(seed)
    policy = load_policy(ModelSource(str(base)))
    tune(policy, settings, POLICY, tokenizer, seed)
    return disturb(policy, seed=seed)


def tuned_classifier(
    base: Path,
    settings: PeftSettings,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 2,
    labels: tuple[str, ...] = ("reward",),
) -> PreTrainedModel:
    """The reward model that a training on `base` left."""
    torch.manual_seed(seed)
    classifier = new_classifier(ModelSource(str(base)), labels)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    tune(classifier, settings, REWARD, tokenizer, seed)
    return disturb(classifier, seed=seed)


def write_policy(
    base: Path, settings: PeftSettings, tokenizer: PreTrainedTokenizerBase, directory: Path, seed: int = 1
) -> Path:
    """What a stage that trained a policy left."""
    directory.mkdir(parents=True)
    save_policy(tuned_policy(base, settings, tokenizer, seed), tokenizer, directory, layers_of(settings))
    return directory


def write_reward(
    base: Path, settings: PeftSettings, tokenizer: PreTrainedTokenizerBase, directory: Path, seed: int = 2
) -> Path:
    """What the stage reward_model left."""
    directory.mkdir(parents=True)
    save_classifier(tuned_classifier(base, settings, tokenizer, seed), tokenizer, directory, layers_of(settings))
    return directory


def trained_names(model: PreTrainedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}
