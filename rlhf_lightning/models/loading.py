"""Load language models, sequence classifiers and tokenizers, check them, and save them for plain Transformers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from rlhf_lightning.distributed import full_tensor, rank
from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models.adapter_files import AdapterFiles, put_on, read_adapter, write_adapter, write_top_layers
from rlhf_lightning.models.adapters import POLICY, REWARD, adapter_names
from rlhf_lightning.models.hub import ModelSource, is_adapter, read_architectures
from rlhf_lightning.models.top_layers import trained_state
from rlhf_lightning.models.virtual_tokens import virtual_tokens

logger = logging.getLogger(__name__)

# Its progress bars of milliseconds and its report of a new head, which is always wanted here, would drown our lines.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


def load_policy(source: ModelSource, device: torch.device | None = None) -> PreTrainedModel:
    """A causal language model without dropout, in eval mode.

    Args:
        device: where it is put; None leaves it on the CPU.

    Raises:
        ModelError: it cannot be found, or is no causal language model.
        ArtifactError: the directory holds another kind of model.
    """
    files = adapter_at(source)
    if files is not None:
        if files.head:
            raise ArtifactError(
                "This is the adapter of a reward model or classifier, not of a policy.",
                where=source.name_or_path,
                fix="name the directory of a language model (a stage sft or ppo)",
            )
        model = load_policy(base_of(source, files), device)
        put_on(model, files, POLICY)
        return model
    if source.is_local:
        architectures = read_architectures(Path(source.name_or_path))
        if any("SequenceClassification" in name for name in architectures):
            raise ArtifactError(
                f"This is a reward model or classifier ({', '.join(architectures)}), not a policy.",
                where=source.name_or_path,
                fix="name the directory of a language model (a stage sft or ppo)",
            )
    arguments = source.loading_arguments()
    from_pretrained: Any = AutoModelForCausalLM.from_pretrained
    with _loading_errors(source, "a causal language model"):
        model, info = from_pretrained(
            source.name_or_path,
            **_how_to_load(source),
            **arguments,
        )
    _require_all_weights(info, source, what="a whole language model", fix="name one that has its head")
    return disable_dropout(model if source.quantization is not None else model.to(device))


def load_classifier(source: ModelSource) -> PreTrainedModel:
    """A finished sequence classifier (a reward model), without dropout, in eval mode.

    Raises:
        ArtifactError: the directory holds a language model: its head would be made of random numbers.
        ModelError: it cannot be found or opened.
    """
    files = adapter_at(source)
    if files is not None:
        if not files.head:
            raise ArtifactError(
                "This is the adapter of a policy, not of a reward model.",
                where=source.name_or_path,
                fix="name the directory of a stage reward_model; a language model has no reward head",
            )
        model = new_classifier(base_of(source, files), files.labels)
        put_on(model, files, REWARD)
        return model
    if source.is_local:
        architectures = read_architectures(Path(source.name_or_path))
        if not any("SequenceClassification" in name for name in architectures):
            raise ArtifactError(
                f"This is not a reward model: its architecture is {', '.join(architectures) or 'not stated'}.",
                where=source.name_or_path,
                fix="name a sequence classifier (the directory of a stage reward_model, or any Transformers "
                "...ForSequenceClassification); a language model has no reward head",
            )
    arguments = source.loading_arguments()
    with _loading_errors(source, "a sequence classifier"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.name_or_path,
            **_how_to_load(source),
            **arguments,
        )
    _require_all_weights(info, source, what="a finished reward model", fix="name a trained sequence classifier")
    return disable_dropout(model)


def new_classifier(source: ModelSource, labels: tuple[str, ...]) -> PreTrainedModel:
    """A sequence classifier on the trunk of `source` (a language model, or a classifier with the same labels).

    A new head starts at standard deviation 1/sqrt(d + 1) and bias 0 (lm-human-preferences). Of a language model with an
    adapter the classifier has a copy, under its own name.

    Args:
        labels: one name per output.
    """
    files = adapter_at(source)
    if files is not None:
        model = new_classifier(base_of(source, files), labels)
        put_on(model, files, REWARD)
        return model
    arguments = source.loading_arguments()
    with _loading_errors(source, "the trunk of a reward model"):
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.name_or_path,
            **_how_to_load(source),
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            ignore_mismatched_sizes=True,
            **arguments,
        )
    head = score_head(model)
    renewed = {name.split(".")[0] for name in info["missing_keys"]} | {
        str(entry[0]).split(".")[0] for entry in info["mismatched_keys"]
    }
    if head is not None and "score" in renewed:
        nn.init.normal_(head.weight, std=(head.in_features + 1) ** -0.5)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    return disable_dropout(model)


def adapter_at(source: ModelSource) -> AdapterFiles | None:
    """Files of the adapter at `source`; None for a full model.

    Raises:
        ArtifactError: its files are damaged.
    """
    directory = Path(source.name_or_path)
    return read_adapter(directory) if is_adapter(directory) else None


def base_of(source: ModelSource, files: AdapterFiles) -> ModelSource:
    """Source of an adapter's base: its recorded location, or the substitute that `source` names."""
    recorded = replace(source, name_or_path=files.base, revision=files.config.revision)
    if recorded.is_local or not Path(files.base).is_absolute() or source.base is None:
        return recorded
    logger.info("The base of %s is not at %s; trying %s.", files.directory, files.base, source.base.name_or_path)
    return source.base


def score_head(classifier: PreTrainedModel) -> nn.Linear | None:
    """The linear head of a decoder-style classifier, applied at every position; None for encoder-style ones."""
    head = getattr(classifier, "score", None)
    return head if isinstance(head, nn.Linear) else None


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """A tokenizer that has an end-of-sequence token, and pads (with EOS where it has no pad of its own).

    Raises:
        ModelError: there is none, or it has no EOS.
    """
    arguments = source.loading_arguments()
    with _loading_errors(source, "a tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name_or_path, **arguments)
    if source.chat_template is not None:
        tokenizer.chat_template = Path(source.chat_template).read_text(encoding="utf-8")
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise ModelError(
            "The tokenizer has no end-of-sequence token, so a response could never end.",
            where=source.name_or_path,
            fix="set eos_token in its tokenizer_config.json to the token that ends a response",
        )
    if tokenizer.pad_token_id is None:
        # Safe: masks are made from lengths, never from `ids != pad`.
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("The tokenizer of %s has no pad token; padding with EOS.", source.name_or_path)
    return tokenizer


def disable_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Set every dropout probability to 0: old and new log-probs must come from the same function.

    Some layers keep a probability as a plain attribute (`attention_dropout`, `attn_pdrop`, `layerdrop`), so modules of
    class Dropout are not enough.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
    model.eval()
    return model


def require_positions(model: PreTrainedModel, tokens: int, where: str) -> None:
    """Check that the model reads sequences of that many tokens, where its config states a limit.

    Args:
        where: the config keys that decide the length.

    Raises:
        ModelError: it does not.
    """
    limit, in_front = readable_tokens(model), _tokens_in_front(model)
    if limit is not None and limit < tokens:
        beside = f" beside {in_front} virtual ones" if in_front else ""
        raise ModelError(
            f"Prompt and response take up to {tokens} tokens, and the model reads {limit}{beside}.",
            where=where,
            fix=f"lower them so that their sum is at most {limit}",
        )


def readable_tokens(model: PreTrainedModel) -> int | None:
    """Maximum number of tokens beside the virtual ones; None if the model's config states no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit - _tokens_in_front(model) if isinstance(limit, int) and limit > 0 else None


def _tokens_in_front(model: PreTrainedModel) -> int:
    attached = virtual_tokens(model)
    return attached.longest() if attached is not None else 0


def _how_to_load(source: ModelSource) -> dict[str, Any]:
    """Arguments of `from_pretrained` that concern the weights: no pickles, the dtype, 4 bits where they are wanted."""
    dtype = getattr(torch, source.dtype)
    arguments = {"dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    if source.quantization is None:
        return arguments
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=source.quantization,
        bnb_4bit_use_double_quant=source.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )
    # Such weights are made on the GPU and cannot be moved afterwards.
    return {**arguments, "quantization_config": four_bits, "device_map": {"": torch.cuda.current_device()}}


def _require_all_weights(info: dict[str, Any], source: ModelSource, *, what: str, fix: str) -> None:
    """Transformers fills what a directory does not hold with random numbers."""
    if info["missing_keys"]:
        raise ArtifactError(
            f"Not {what}: the weights {', '.join(sorted(info['missing_keys']))} are missing.",
            where=source.name_or_path,
            fix=fix,
        )


@contextmanager
def _loading_errors(source: ModelSource, what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ModelError(
            f"Cannot open {what}: {(str(error).strip() or type(error).__name__).splitlines()[0]}",
            where=source.name_or_path,
            fix="check that it is a Transformers model of that kind with safetensors weights and a tokenizer",
        ) from error


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
            full = full_tensor(weight.detach())
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
