"""Invariants of every correct PPO run, checked during the run.

Their cost is a forward pass of a micro-batch and one of a single row in each iteration, and two hashes of the reference
in a run. What they find are the silent defects of PPO: what looks like learning and is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from rlhf_lightning.algorithms.ppo import PPO
from rlhf_lightning.algorithms.ppo_iteration import RolloutBufferCallback
from rlhf_lightning.errors import InvariantError
from rlhf_lightning.models.reference import FrozenReference
from rlhf_lightning.objectives.masked_stats import masked_mean
from rlhf_lightning.rollouts.buffer import Minibatch, Rollout

DISABLE_HINT = "callbacks.self_checks=false runs on regardless"


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest allowed difference between two evaluations of the same log-prob, in nats per token.

    Attributes:
        mean: on average over tokens.
        largest: at the worst token.
    """

    mean: float
    largest: float


TOLERANCES = {
    "float32": Tolerance(mean=1e-4, largest=1e-3),
    # A logit near 20 is rounded to 1/64 in half precision, and to 1/8 in bfloat16.
    "float16": Tolerance(mean=0.01, largest=0.25),
    "bfloat16": Tolerance(mean=0.05, largest=1.0),
}
"""By the coarsest arithmetic on the way: batches of other shapes are summed in another order, and rounded otherwise."""


def tolerance(dtype: str, precision: str) -> Tolerance:
    """Tolerance for a dtype and precision.

    Args:
        dtype: of the weights, `model.dtype`.
        precision: of the training's arithmetic, `trainer.precision`.
    """
    arithmetic = {"32-true": "float32", "16-mixed": "float16", "bf16-mixed": "bfloat16"}[precision]
    return max(TOLERANCES[dtype], TOLERANCES[arithmetic], key=lambda allowed: allowed.mean)


class SelfChecks(pl.Callback):
    """Stops a run that violates an invariant of PPO, and names it and the cause.

    - The log-probs that the sampler recorded are those that the training computes.
    - Before anything was learned the KL to the reference is 0.
    - Before the first update of an iteration every probability ratio is 1.
    - The reference answers a fixed input alike in each iteration, bit for bit, and its weights at the end are those of
      the start, over interruptions too.

    Args:
        rollouts: stands before this callback and fills the buffer.
        reference: that must not change.
        tolerance: of log-probs.
    """

    def __init__(self, rollouts: RolloutBufferCallback, reference: FrozenReference, tolerance: Tolerance) -> None:
        self.rollouts = rollouts
        self.reference = reference
        self.tolerance = tolerance
        self._fingerprint: str | None = None
        self._probe: tuple[Rollout, Tensor] | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer, pl_module
        found = self.reference.fingerprint()
        if self._fingerprint is not None and self._fingerprint != found:
            raise InvariantError(
                "The run goes on with another reference than it began with.",
                where="ppo.policy_from",
                fix="put the model back that ppo.policy_from named when the run was started",
            )
        self._fingerprint = found

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Minibatch, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, PPO)
        if batch_idx > 0 or pl_module.update_is_over:
            return
        iteration = trainer.current_epoch
        self._check_sampling(iteration)
        if iteration == 0:
            self._check_start()
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            logprobs = pl_module(batch.rollout).logprobs
        self._check_ratio(iteration, batch.rollout, logprobs, pl_module.settings.clip_range)
        self._check_reference(iteration, batch.rollout)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer, pl_module
        if self.reference.fingerprint() != self._fingerprint:
            raise changed_reference("its weights at the end of training are not those of its start")

    def state_dict(self) -> dict[str, Any]:
        return {"version": 1, "fingerprint": self._fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._fingerprint = state_dict["fingerprint"]

    def _check_sampling(self, iteration: int) -> None:
        mismatch = self.rollouts.last_metrics["rollout/logprob_mismatch"]
        if not mismatch <= self.tolerance.mean:
            raise InvariantError(
                f"Iteration {iteration}: responses were sampled from another distribution than is trained. Log-probs "
                f"that the sampler recorded differ by {mismatch:.3g} nats a token from those that training computes "
                f"(rollout/logprob_mismatch; allowed {self.tolerance.mean:g}).",
                where="rollout.temperature, and what else shapes the sampling",
                fix="likely causes, the commonest first: a temperature on one side only; top-k, top-p or a penalty in "
                "the sampler; dropout; positions that count padding; weights that changed between sampling and "
                f"evaluation; a sampler in another precision. {DISABLE_HINT}",
            )

    def _check_start(self) -> None:
        metrics = self.rollouts.last_metrics
        kl, length = metrics["objective/kl"], metrics["rollout/length"]
        if not abs(kl) <= self.tolerance.mean * length:
            raise InvariantError(
                f"The policy has learned nothing yet, but its KL to the reference is {kl:.3g} nats a response "
                f"(allowed {self.tolerance.mean * length:.2g} for {length:.3g} tokens).",
                where="ppo.policy_from",
                fix="likely causes: the reference is another model or was loaded in another precision; a temperature, "
                f"padding or position ids on one side only; dropout. {DISABLE_HINT}",
            )

    def _check_ratio(self, iteration: int, rollout: Rollout, logprobs: Tensor, clip_range: float) -> None:
        mask = rollout.response_mask
        difference = (logprobs.float() - rollout.logprobs.float()).abs().masked_fill(~mask, 0.0)
        mean, largest = float(masked_mean(difference, mask)), float(difference.max())
        if mean <= self.tolerance.mean and largest <= self.tolerance.largest:
            return
        clipped = float(masked_mean((difference.exp() - 1 > clip_range).float(), mask))
        raise InvariantError(
            f"Iteration {iteration}: before its first update each probability ratio should be 1, but they are off by a "
            f"factor of up to {difference.max().exp():.4g} ({mean:.2g} nats a token on average, allowed "
            f"{self.tolerance.mean:g}), and {clipped:.1%} of the tokens would be clipped.",
            where="the first minibatch after the rollouts",
            fix="likely causes: dropout or another random layer is on in training; the policy changed after the "
            "rollouts; a temperature, padding or position ids differ between rollout and update; the rollouts were "
            f"evaluated in another precision. {DISABLE_HINT}",
        )

    def _check_reference(self, iteration: int, rollout: Rollout) -> None:
        if self._probe is None:
            row = rollout.select(torch.zeros(1, dtype=torch.long, device=rollout.sequences.device))
            self._probe = row, self._answer(row)
            return
        row, before = self._probe
        if not torch.equal(self._answer(row), before):
            raise changed_reference(f"in iteration {iteration} it answers a fixed input in another way than before")

    def _answer(self, row: Rollout) -> Tensor:
        return self.reference.logprobs(row.sequences, row.attention_mask, row.response_length, temperature=1.0)


def changed_reference(what: str) -> InvariantError:
    """The error for a reference that is not frozen."""
    return InvariantError(
        f"The frozen reference changed during training: {what}.",
        where="the reference policy",
        fix="likely causes: it shares weights with the policy, or a callback or optimizer holds its parameters. "
        f"{DISABLE_HINT}",
    )
