"""Encoded records become padded tensors, with masks made from lengths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_lightning.batches import DemonstrationBatch, PreferenceBatch, PromptBatch, right_padded, right_padding_mask
from rlhf_lightning.data.encoding import EncodedDemonstration, EncodedPreference, EncodedPrompt


def collate_prompts(prompts: Sequence[EncodedPrompt], pad_id: int) -> PromptBatch:
    """Left-padded prompts."""
    width = max(len(prompt.prompt_ids) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt.prompt_ids)
        input_ids[row, start:] = torch.tensor(prompt.prompt_ids, dtype=torch.long)
        attention_mask[row, start:] = 1
    return PromptBatch(input_ids, attention_mask, tuple(prompt.prompt for prompt in prompts))


def collate_demonstrations(
    demonstrations: Sequence[EncodedDemonstration], pad_id: int, step_weight: int
) -> DemonstrationBatch:
    """Right-padded demonstrations, the loss on the reply's tokens.

    Args:
        demonstrations: one micro-batch.
        pad_id: token id of the padding.
        step_weight: the loss tokens of the whole optimizer step that the micro-batch belongs to.
    """
    input_ids, attention_mask = _with_mask([record.prompt_ids + record.reply_ids for record in demonstrations], pad_id)
    loss_mask = attention_mask.bool()
    for row, record in enumerate(demonstrations):
        loss_mask[row, : len(record.prompt_ids)] = False
    return DemonstrationBatch(input_ids, attention_mask, loss_mask, step_weight)


def collate_preferences(preferences: Sequence[EncodedPreference], pad_id: int, step_weight: int) -> PreferenceBatch:
    """Right-padded pairs.

    Args:
        preferences: one micro-batch.
        pad_id: token id of the padding.
        step_weight: the pairs of the whole optimizer step that the micro-batch belongs to.
    """
    chosen_ids, chosen_mask = _with_mask([pair.prompt_ids + pair.chosen_ids for pair in preferences], pad_id)
    rejected_ids, rejected_mask = _with_mask([pair.prompt_ids + pair.rejected_ids for pair in preferences], pad_id)
    margin = torch.tensor([pair.margin for pair in preferences], dtype=torch.float32)
    probability = torch.tensor([pair.probability for pair in preferences], dtype=torch.float32)
    return PreferenceBatch(chosen_ids, chosen_mask, rejected_ids, rejected_mask, margin, probability, step_weight)


def _with_mask(sequences: Sequence[tuple[int, ...]], pad_id: int) -> tuple[Tensor, Tensor]:
    return right_padded(sequences, pad_id), right_padding_mask(sequences)
