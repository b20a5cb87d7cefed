"""Leaving models as directories that plain Transformers opens."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def save_policy(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Weights (safetensors), config, generation config, tokenizer and chat template."""
    name_special_tokens(policy, tokenizer)
    policy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    share_weights(directory)


def save_classifier(classifier: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    """Weights (safetensors), config with its label names, and tokenizer."""
    classifier.config.pad_token_id = tokenizer.pad_token_id
    classifier.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    share_weights(directory)


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
