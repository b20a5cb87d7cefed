"""Save models as directories that plain Transformers opens."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lightning.distributed import rank, whole
from rlhf_lightning.models.adapter_files import write_adapter, write_top_layers
from rlhf_lightning.models.adapters import POLICY, REWARD, adapter_names
from rlhf_lightning.models.top_layers import trained_state


def save_policy(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, layers: int | None = None
) -> None:
    """Save the trained weights (safetensors), tokenizer and chat template.

    With an adapter only that, in PEFT's format; else all weights, config and generation config.
    All processes of a run call this; rank 0 writes.

    Args:
        layers: only so many top layers were trained.
    """
    if rank() == 0:
        name_special_tokens(policy, tokenizer)
    _save(policy, POLICY, tokenizer, directory, layers)


def save_classifier(
    classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path, layers: int | None = None
) -> None:
    """Save the trained weights (safetensors) and tokenizer.

    With an adapter only that and the head, in PEFT's format; else all weights, and config with the label names.
    All processes of a run call this; rank 0 writes.

    Args:
        layers: only the head and so many top layers were trained.
    """
    if rank() == 0:
        classifier.config.pad_token_id = tokenizer.pad_token_id
    _save(classifier, REWARD, tokenizer, directory, layers)


def _save(
    model: PreTrainedModel, adapter: str, tokenizer: PreTrainedTokenizerBase, directory: Path, layers: int | None
) -> None:
    tops = trained_state(model, layers) if layers is not None else {}
    weights = whole_weights(model) if layers is None else None
    if rank() > 0:
        return
    if layers is not None:
        write_top_layers(model, layers, tops, directory)
    elif adapter in adapter_names(model):
        write_adapter(model, adapter, directory, weights)
    else:
        model.save_pretrained(directory, state_dict=weights)
    tokenizer.save_pretrained(directory)
    share_weights(directory)


def whole_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """A model's full weights on the CPU, gathered if FSDP shards them; None (unchanged) otherwise.

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
        weights.chmod((directory / "tokenizer_config.json").stat().st_mode)
