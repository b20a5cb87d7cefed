"""A whole PPO iteration against a second one that shares no line with it: plain loops in float64, no padding at all.

From the sampled tokens and their scores on, everything is computed anew: log-probs, KL penalty, placement of the score,
advantages, whitening, both clipped losses, the entropy bonus, their weighting by tokens, and steps of plain gradient
descent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.rollouts.sampler import Completion

MakeModel = Callable[..., PreTrainedModel]

TEMPERATURE, KL_COEF, GAMMA, LAM = 0.8, 0.3, 0.99, 0.9
CLIP, VALUE_CLIP, VALUE_COEF, ENTROPY_COEF, PENALTY = 0.2, 0.05, 0.4, 0.02, -1.5
LEARNING_RATE, CRITIC_RATE = 0.3, 0.1


def rule(completion: Completion) -> float:
    return completion.reply_ids[0] / 25.0 - 1.0


@dataclass
class Token:
    """What is known of one sampled token when the update begins."""

    logprob: float
    value: float
    reward: float
    advantage: float = 0.0
    target: float = 0.0


class Naive:
    """PPO on one sequence after another."""

    def __init__(self, policy: PreTrainedModel, reference: PreTrainedModel, value_head: Tensor) -> None:
        self.policy: Any = copy.deepcopy(policy).double()
        self.reference: Any = copy.deepcopy(reference).double()
        self.head = value_head.double().clone().requires_grad_()
        self.bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def read(self, model: Any, completion: Completion) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(log-prob, value, entropy) of each reply token."""
        ids = [*completion.prompt_ids, *completion.reply_ids]
        output = model(torch.tensor([ids]), output_hidden_states=True)
        described = []
        for step, token in enumerate(completion.reply_ids):
            before = len(completion.prompt_ids) + step - 1
            exponents = (output.logits[0, before] / TEMPERATURE).exp()
            probabilities = exponents / exponents.sum()
            value = (self.head[0] * output.hidden_states[-1][0, before]).sum() + self.bias[0]
            described.append((probabilities[token].log(), value, -(probabilities * probabilities.log()).sum()))
        return described

    def prepare(self, completions: list[Completion]) -> list[list[Token]]:
        """Rewards, advantages and value targets of all tokens."""
        rows = []
        for completion in completions:
            ours, theirs = self.read(self.policy, completion), self.read(self.reference, completion)
            row = []
            for (logprob, value, _), (reference, _, _) in zip(ours, theirs, strict=True):
                row.append(Token(logprob.item(), value.item(), -KL_COEF * (logprob.item() - reference.item())))
            row[-1].reward += rule(completion) if completion.finished else PENALTY
            rows.append(row)
        for row in rows:
            for step, token in enumerate(row):
                # The sum over all later errors, written out.
                for later in range(step, len(row)):
                    next_value = row[later + 1].value if later + 1 < len(row) else 0.0
                    error = row[later].reward + GAMMA * next_value - row[later].value
                    token.advantage += (GAMMA * LAM) ** (later - step) * error
                token.target = token.advantage + token.value
        tokens = [token for row in rows for token in row]
        mean = sum(token.advantage for token in tokens) / len(tokens)
        deviation = math.sqrt(sum((token.advantage - mean) ** 2 for token in tokens) / len(tokens))
        for token in tokens:
            token.advantage = (token.advantage - mean) / deviation
        return rows

    def step(self, completions: list[Completion], rows: list[list[Token]]) -> int:
        """One step down the mean loss of a token; how many tokens had their policy loss clipped."""
        total, count, clipped = torch.zeros(1, dtype=torch.float64), 0, 0
        for completion, row in zip(completions, rows, strict=True):
            for (logprob, value, entropy), token in zip(self.read(self.policy, completion), row, strict=True):
                ratio = (logprob - token.logprob).exp()
                limited = min(max(ratio.item(), 1.0 - CLIP), 1.0 + CLIP)
                if token.advantage * limited < token.advantage * ratio.item():
                    clipped += 1
                    policy_loss = torch.tensor(-token.advantage * limited, dtype=torch.float64)
                else:
                    policy_loss = -token.advantage * ratio
                near = token.value + min(max(value.item() - token.value, -VALUE_CLIP), VALUE_CLIP)
                value_loss = (value - token.target) ** 2
                if (near - token.target) ** 2 > value_loss.item():
                    value_loss = torch.tensor((near - token.target) ** 2, dtype=torch.float64)
                total = total + policy_loss + VALUE_COEF * 0.5 * value_loss - ENTROPY_COEF * entropy
                count += 1
        parameters = [*self.policy.parameters(), self.head, self.bias]
        gradients = torch.autograd.grad(total / count, parameters)
        rates = [LEARNING_RATE] * (len(parameters) - 2) + [CRITIC_RATE] * 2
        with torch.no_grad():
            for parameter, gradient, rate in zip(parameters, gradients, rates, strict=True):
                parameter -= rate * gradient
        return clipped

    def weights(self) -> dict[str, Tensor]:
        named = {f"actor_critic.policy.{name}": weight for name, weight in self.policy.named_parameters()}
        head = {"linear.weight": self.head, "linear.bias": self.bias}
        return named | {f"actor_critic.value_head.{name}": weight for name, weight in head.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("epochs", [1, 3])
def test_an_iteration_equals_the_plain_one(
    kind: str, epochs: int, make_policy: MakeModel, fit_ppo: Callable[..., Any]
) -> None:
    start, reference = make_policy(kind), make_policy(kind, seed=1)
    value_head = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)) / 4
    fit = fit_ppo(
        make_policy(kind),
        rule,
        epochs=epochs,
        micro_batch_size=2,
        learning_rate=LEARNING_RATE,
        critic_learning_rate=CRITIC_RATE,
        lr_schedule="constant",
        clip_range=CLIP,
        value_clip_range=VALUE_CLIP,
        value_coef=VALUE_COEF,
        entropy_coef=ENTROPY_COEF,
        missing_eos_penalty=PENALTY,
        value_head=value_head,
        collecting={
            "reference": reference,
            "temperature": TEMPERATURE,
            "kl_coef": KL_COEF,
            "gamma": GAMMA,
            "lam": LAM,
            "chunk_size": 3,
        },
    )
    completions = list(fit.collected[0].completions)
    assert {completion.finished for completion in completions} == {True, False}
    naive = Naive(start, reference, value_head)
    rows = naive.prepare(completions)
    clipped = [naive.step(completions, rows) for _ in range(epochs)]

    before = dict(start.named_parameters())
    largest, drift, moved = 0.0, [], 0.0
    for name, expected in naive.weights().items():
        # The difference of the weights is that of the gradients, times the learning rate and the number of steps.
        rate = CRITIC_RATE if "value_head" in name else LEARNING_RATE
        difference = (fit.weights[name].double() - expected).detach() / (rate * epochs)
        largest = max(largest, float(difference.abs().max()))
        drift.append(difference.flatten())
        if name.startswith("actor_critic.policy."):
            moved = max(
                moved, float((expected - before[name.removeprefix("actor_critic.policy.")]).detach().abs().max())
            )
    assert largest < 1e-5
    assert torch.cat(drift).mean().abs() < 1e-7
    assert moved > 0.01
    # The first step clips nothing; later ones do, or their clipping would not have been tested.
    assert clipped[0] == 0
    assert all(count > 0 for count in clipped[1:])
    tokens = sum(len(row) for row in rows)
    assert fit.metrics["policy/clip_fraction"] == pytest.approx(sum(clipped) / (tokens * epochs), abs=1e-6)
