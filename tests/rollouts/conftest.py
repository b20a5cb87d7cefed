"""Rollouts whose rows can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from rlhf_lightning.rollouts.buffer import Rollout


@pytest.fixture(scope="session")
def make_rollout() -> Callable[..., Rollout]:
    """Builds rollouts of given prompt and reply lengths; row i has score i, and tokens 10 * i + position."""

    def build(prompts: Sequence[int], replies: Sequence[int], *, seed: int = 0) -> Rollout:
        rows, prompt_width, reply_width = len(prompts), max(prompts), max(replies)
        attention_mask = torch.zeros(rows, prompt_width + reply_width, dtype=torch.long)
        for row, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
            attention_mask[row, prompt_width - prompt : prompt_width + reply] = 1
        reply_mask = attention_mask[:, prompt_width:].bool()
        generator = torch.Generator().manual_seed(seed)
        figures = torch.randn(8, rows, reply_width, generator=generator).masked_fill(~reply_mask, 0.0)
        tokens = 10 * torch.arange(1, rows + 1)[:, None] + torch.arange(prompt_width + reply_width)
        return Rollout(
            sequences=tokens * attention_mask,
            attention_mask=attention_mask,
            reply_mask=reply_mask,
            sampled_logprobs=figures[6],
            logprobs=figures[0],
            reference_logprobs=figures[1],
            kl=figures[7],
            values=figures[2],
            raw_scores=-torch.arange(rows, dtype=torch.float32),
            scores=torch.arange(rows, dtype=torch.float32),
            finished=torch.arange(rows) % 2 == 0,
            rewards=figures[3],
            advantages=figures[4],
            returns=figures[5],
        )

    return build
