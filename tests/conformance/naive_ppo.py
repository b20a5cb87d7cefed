"""PPO a second time, sharing no line with the package: plain loops in float64, one sequence at a time, no padding.

From the sampled tokens and their raw scores on, everything is computed anew: log-probs, the KL penalty by any estimator
in the reward or in the loss, the placement of the score, whitened rewards, advantages, whitening, both clipped losses,
the entropy bonus, their weighting by tokens, clipped gradients, and steps of plain gradient descent.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_lightning.rollouts.sampler import SampledResponse


@dataclass(frozen=True)
class Choices:
    """One way to set PPO up."""

    temperature: float = 0.8
    estimator: str = "k1"
    in_loss: bool = False
    kl_coef: float = 0.3
    gamma: float = 0.99
    gae_lambda: float = 0.9
    whiten: bool = True
    whiten_rewards: bool = False
    penalty: float | None = -1.5
    clip: float = 0.2
    value_clip: float = 0.05
    value_coef: float = 0.4
    entropy_coef: float = 0.02
    learning_rate: float = 0.3
    critic_rate: float = 0.1
    max_grad_norm: float = 1e6


@dataclass
class Token:
    """What is known of one sampled token when the update begins."""

    logprob: float
    reference: float
    value: float
    kl: float
    reward: float
    advantage: float = 0.0
    target: float = 0.0


@dataclass
class Reading:
    """What a policy, its critic and the reference say of one token, with gradients."""

    logprob: Tensor
    value: Tensor
    entropy: Tensor
    reference: Tensor
    exact_kl: Tensor


@dataclass
class Tally:
    """Sums over the tokens of one step."""

    tokens: int = 0
    loss: float = 0.0
    clipped: int = 0
    value_loss: float = 0.0
    value_clipped: int = 0
    approx_kl: float = 0.0
    norm: float = 0.0


class Naive:
    """PPO on one sequence after another.

    Args:
        policy: where training starts.
        reference: that the KL is measured to.
        value_head: (1, hidden), the value head's first weights; its bias starts at 0.
        critic: a trunk of the critic's own.
    """

    def __init__(
        self,
        choices: Choices,
        policy: PreTrainedModel,
        reference: PreTrainedModel,
        value_head: Tensor,
        critic: PreTrainedModel | None = None,
    ) -> None:
        self.choices = choices
        self.policy: Any = copy.deepcopy(policy).double()
        self.reference: Any = copy.deepcopy(reference).double()
        self.critic: Any = None if critic is None else copy.deepcopy(critic.base_model).double()
        self.head = value_head.double().clone().requires_grad_()
        self.bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)

    def read(self, response: SampledResponse) -> list[Reading]:
        """One reading for each response token."""
        ids = torch.tensor([[*response.prompt_ids, *response.response_ids]])
        output = self.policy(ids, output_hidden_states=True)
        with torch.no_grad():
            theirs = self.reference(ids).logits[0]
        hidden = output.hidden_states[-1][0] if self.critic is None else self.critic(ids).last_hidden_state[0]
        readings = []
        for step, token in enumerate(response.response_ids):
            before = len(response.prompt_ids) + step - 1
            ours = probabilities(output.logits[0, before], self.choices.temperature)
            reference = probabilities(theirs[before], self.choices.temperature)
            readings.append(
                Reading(
                    logprob=ours[token].log(),
                    value=(self.head[0] * hidden[before]).sum() + self.bias[0],
                    entropy=-(ours * ours.log()).sum(),
                    reference=reference[token].log(),
                    exact_kl=(ours * (ours / reference).log()).sum(),
                )
            )
        return readings

    def prepare(
        self, responses: Sequence[SampledResponse], score: Callable[[SampledResponse], float]
    ) -> list[list[Token]]:
        """Rewards, advantages and value targets of all tokens."""
        choices = self.choices
        rows = []
        for response in responses:
            row = []
            for reading in self.read(response):
                d = reading.logprob.item() - reading.reference.item()
                kl = estimate(choices.estimator, d) if choices.estimator != "exact" else reading.exact_kl.item()
                paid = 0.0 if choices.in_loss else choices.kl_coef * kl
                row.append(Token(reading.logprob.item(), reading.reference.item(), reading.value.item(), kl, -paid))
            row[-1].reward += (
                choices.penalty if choices.penalty is not None and not response.finished else score(response)
            )
            rows.append(row)
        everything = [token for row in rows for token in row]
        rewards = [token.reward for token in everything]
        if choices.whiten_rewards:
            mean, deviation = moments(rewards)
            rewards = [(reward - mean) / deviation + mean for reward in rewards]
        for token, reward in zip(everything, rewards, strict=True):
            token.advantage = reward  # for now: what the loop below adds errors up from
        for row in rows:
            self._estimate_advantages(row, [token.advantage for token in row])
        if choices.whiten:
            mean, deviation = moments([token.advantage for token in everything])
            for token in everything:
                token.advantage = (token.advantage - mean) / deviation
        return rows

    def _estimate_advantages(self, row: list[Token], rewards: list[float]) -> None:
        """The sum over all later errors, written out."""
        gamma, gae_lambda = self.choices.gamma, self.choices.gae_lambda
        for step, token in enumerate(row):
            token.advantage = 0.0
            for later in range(step, len(row)):
                next_value = row[later + 1].value if later + 1 < len(row) else 0.0
                error = rewards[later] + gamma * next_value - row[later].value
                token.advantage += (gamma * gae_lambda) ** (later - step) * error
            token.target = token.advantage + token.value

    def step(self, responses: Sequence[SampledResponse], rows: Sequence[list[Token]]) -> Tally:
        """One step down the mean loss of a token."""
        total, tally = torch.zeros((), dtype=torch.float64), Tally()
        for response, row in zip(responses, rows, strict=True):
            for reading, token in zip(self.read(response), row, strict=True):
                total = total + self._loss(reading, token, tally)
        self._descend(total / tally.tokens, tally)
        return tally

    def _loss(self, reading: Reading, token: Token, tally: Tally) -> Tensor:
        choices = self.choices
        ratio = (reading.logprob - token.logprob).exp()
        limited = min(max(ratio.item(), 1.0 - choices.clip), 1.0 + choices.clip)
        loss = -token.advantage * ratio
        if token.advantage * limited < token.advantage * ratio.item():
            tally.clipped += 1
            loss = torch.tensor(-token.advantage * limited, dtype=torch.float64)
        near = min(max(reading.value.item(), token.value - choices.value_clip), token.value + choices.value_clip)
        value_loss = 0.5 * (reading.value - token.target) ** 2
        if 0.5 * (near - token.target) ** 2 > value_loss.item():
            tally.value_clipped += 1
            value_loss = torch.tensor(0.5 * (near - token.target) ** 2, dtype=torch.float64)
        tally.tokens += 1
        tally.loss += loss.item()
        tally.value_loss += value_loss.item()
        tally.approx_kl += ratio.item() - 1.0 - math.log(ratio.item())
        loss = loss + choices.value_coef * value_loss - choices.entropy_coef * reading.entropy
        if choices.in_loss:
            loss = loss + choices.kl_coef * self._kl_loss(reading, ratio)
        return loss

    def _kl_loss(self, reading: Reading, ratio: Tensor) -> Tensor:
        """By its gradient: that of the exact KL, or the one that a sample estimates of it, weighted by its ratio."""
        if self.choices.estimator == "exact":
            return reading.exact_kl
        d = (reading.logprob - reading.reference).item()
        # d(ratio * d) = ratio * (d + 1) * dlogp; that of k2 and of k3 is ratio * d * dlogp.
        slope = ratio.item() * (d + 1.0 if self.choices.estimator == "k1" else d)
        return slope * reading.logprob

    def _descend(self, loss: Tensor, tally: Tally) -> None:
        trunk = [] if self.critic is None else list(self.critic.parameters())
        parameters = [*self.policy.parameters(), *trunk, self.head, self.bias]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        tally.norm = math.sqrt(sum(float((g**2).sum()) for g in gradients if g is not None))
        shrink = min(1.0, self.choices.max_grad_norm / tally.norm)
        critic = len(trunk) + 2
        rates = [self.choices.learning_rate] * (len(parameters) - critic) + [self.choices.critic_rate] * critic
        with torch.no_grad():
            for parameter, gradient, rate in zip(parameters, gradients, rates, strict=True):
                if gradient is not None:
                    parameter -= rate * shrink * gradient

    def weights(self) -> dict[str, tuple[Tensor, float]]:
        """The trained weights by their names in the package, with their learning rates."""
        policy = {f"policy.{name}": weight for name, weight in self.policy.named_parameters()}
        prefix = "value_head" if self.critic is None else "critic.head"
        critic = {f"{prefix}.linear.weight": self.head, f"{prefix}.linear.bias": self.bias}
        if self.critic is not None:
            critic |= {f"critic.trunk.{name}": weight for name, weight in self.critic.named_parameters()}
        named = {name: (weight.detach(), self.choices.learning_rate) for name, weight in policy.items()}
        named |= {name: (weight.detach(), self.choices.critic_rate) for name, weight in critic.items()}
        return {f"actor_critic.{name}": entry for name, entry in named.items()}


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    exponents = (logits / temperature).exp()
    return exponents / exponents.sum()


def estimate(estimator: str, d: float) -> float:
    """The KL of one sample whose log-probs differ by d."""
    return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]


def moments(numbers: Sequence[float]) -> tuple[float, float]:
    mean = sum(numbers) / len(numbers)
    return mean, math.sqrt(sum((number - mean) ** 2 for number in numbers) / len(numbers))
