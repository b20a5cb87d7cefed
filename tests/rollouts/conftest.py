"""Rollouts whose rows can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from rlhf_lightning.rollouts.buffer import Rollout


@pytest.fixture(scope="session")
def make_rollout() -> Callable[..., Rollout]:
    """Builds rollouts of given prompt and response lengths; row i has score i, and tokens 10 * i + position."""

    def build(prompts: Sequence[int], responses: Sequence[int], *, seed: int = 0) -> Rollout:
        rows, prompt_width, response_width = len(prompts), max(prompts), max(responses)
        attention_mask = torch.zeros(rows, prompt_width + response_width, dtype=torch.long)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            attention_mask[row, prompt_width - prompt : prompt_width + response] = 1
        response_mask = attention_mask[:, prompt_width:].bool()
        generator = torch.Generator().manual_seed(seed)
        figures = torch.randn(8, rows, response_width, generator=generator).masked_fill(~response_mask, 0.0)
        tokens = 10 * torch.arange(1, rows + 1)[:, None] + torch.arange(prompt_width + response_width)
        return Rollout(
            sequences=tokens * attention_mask,
            attention_mask=attention_mask,
            response_mask=response_mask,
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
