"""Leaving models as directories that plain Transformers opens."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.distributed import rank, whole


def save_policy(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Weights (safetensors), config, generation config, tokenizer and chat template.

    All processes of a run call this; the first one writes.
    """
    weights = whole_weights(policy)
    if rank() == 0:
        name_special_tokens(policy, tokenizer)
        policy.save_pretrained(directory, state_dict=weights)
        tokenizer.save_pretrained(directory)
        share_weights(directory)


def save_classifier(classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Weights (safetensors), config with its label names, and tokenizer.

    All processes of a run call this; the first one writes.
    """
    weights = whole_weights(classifier)
    if rank() == 0:
        classifier.config.pad_token_id = tokenizer.pad_token_id
        classifier.save_pretrained(directory, state_dict=weights)
        tokenizer.save_pretrained(directory)
        share_weights(directory)


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """A model's weights put together on the CPU, if FSDP keeps them in shards; None (as they are) otherwise.

    All processes put together; the first one gets the result. Weights that are one (tied embeddings) stay one.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not any(isinstance(parameter, DTensor) for parameter in parameters.values()):
        return None
    put_together: dict[int, Tensor] = {}
    weights = {}
    for name, weight in model.state_dict().items():
        identity = id(parameters.get(name, weight))
        if identity not in put_together:
            full = whole(weight.detach())
            put_together[identity] = full.cpu() if rank() == 0 else full.new_empty(0)
        weights[name] = put_together[identity]
    return weights


def name_special_tokens(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let `generate()` stop and pad on its own, without a warning, wherever the directory is opened."""
    config = policy.generation_config
    if config is None:
        return
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id


def share_weights(directory: Path) -> None:
    """Give weight files the permissions of the files beside them: safetensors writes them for their owner alone."""
    for weights in directory.glob("*.safetensors"):
        weights.chmod((directory / "config.json").stat().st_mode)
