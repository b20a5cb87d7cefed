"""Known mistakes of PPO implementations, each as a change of the package that the conformance suite must catch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A known mistake.

    Attributes:
        what: in words.
        file: in the package.
        text: what stands there exactly once.
        instead: the mistake.
    """

    what: str
    file: str
    text: str
    instead: str

    def plant(self, source: str) -> str:
        """The file with the mistake.

        Raises:
            ValueError: the text does not stand there exactly once; the mistake has to follow the package.
        """
        if source.count(self.text) != 1:
            raise ValueError(f"{self.what}: its text stands {source.count(self.text)} times in {self.file}, not once")
        return source.replace(self.text, self.instead)

    def lines(self, source: str) -> tuple[int, int]:
        """First and last line of the text in the file as it is."""
        first = source[: source.index(self.text)].count("\n") + 1
        return first, first + self.text.rstrip("\n").count("\n")


MISTAKES = {
    "score_on_pad": Mistake(
        "the score lands on the pad after EOS",
        "objectives/advantages.py",
        "last = mask.sum(dim=1) - 1",
        "last = mask.sum(dim=1).clamp(max=mask.shape[1] - 1)",
    ),
    "unmasked_kl": Mistake(
        "the KL of pads is paid for",
        "objectives/advantages.py",
        "rewards = torch.where(mask, -kl_coef * kl, torch.zeros_like(kl))",
        "rewards = -kl_coef * kl",
    ),
    "whitening_ignores_mask": Mistake(
        "whitening counts pads",
        "objectives/masked_stats.py",
        "whitened = (values - mean) * torch.rsqrt(masked_variance(values, mask) + eps)",
        "whitened = (values - values.mean()) * torch.rsqrt(values.var() + eps)",
    ),
    "whitened_returns": Mistake(
        "returns are made of whitened advantages",
        "algorithms/ppo_iteration.py",
        "            advantages = masked_whiten(advantages, mask)\n",
        "            advantages = masked_whiten(advantages, mask)\n"
        "            returns = torch.where(mask, advantages + rollout.values, advantages)\n",
    ),
    "missing_temperature": Mistake(
        "log-probs without the temperature",
        "objectives/logprobs.py",
        "scaled = logits.float() / temperature",
        "scaled = logits.float()",
    ),
    "dropout_on": Mistake(
        "dropout stays on",
        "models/loading.py",
        "    for module in model.modules():\n        if isinstance(module, nn.Dropout):",
        "    return model.train()\n    for module in model.modules():\n        if isinstance(module, nn.Dropout):",
    ),
    "reference_trains": Mistake(
        "the reference is the policy, and trains",
        "models/reference.py",
        "        return cls(copy.deepcopy(policy))\n",
        "        reference = cls(policy)\n        policy.requires_grad_(True)\n        return reference\n",
    ),
    "value_clip_side": Mistake(
        "the value loss is the smaller of the two",
        "objectives/ppo.py",
        "loss=0.5 * torch.maximum(unclipped, clipped)",
        "loss=0.5 * torch.minimum(unclipped, clipped)",
    ),
    "entropy_sign": Mistake(
        "the entropy bonus is a penalty",
        "algorithms/ppo.py",
        "losses = losses - settings.entropy_coef * outputs.entropies",
        "losses = losses + settings.entropy_coef * outputs.entropies",
    ),
    "mean_of_means": Mistake(
        "a step's loss is the mean of its micro-batches' means",
        "algorithms/ppo.py",
        "masked_sum(losses, mask) / batch.step_weight * self.trainer.accumulate_grad_batches",
        "masked_mean(losses, mask)",
    ),
    "wrong_lambda": Mistake(
        "advantages decay by lambda without gamma",
        "objectives/advantages.py",
        "float(gamma * gae_lambda)",
        "float(gae_lambda)",
    ),
    "positions_count_pads": Mistake(
        "position ids count left pads",
        "models/forward_pass.py",
        "(attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)",
        "torch.arange(attention_mask.shape[1], device=attention_mask.device).expand_as(attention_mask)",
    ),
    "policy_clip_side": Mistake(
        "the policy loss is the smaller of the two",
        "objectives/ppo.py",
        "loss=torch.maximum(unclipped, clipped)",
        "loss=torch.minimum(unclipped, clipped)",
    ),
    "controller_unclipped": Mistake(
        "the adaptive controller does not clip its error",
        "objectives/kl.py",
        "error = min(max(kl / target - 1.0, -LARGEST_STEP), LARGEST_STEP)",
        "error = kl / target - 1.0",
    ),
    "k3_sign": Mistake(
        "k3 with the wrong sign of its difference",
        "objectives/kl.py",
        "return difference.exp() - 1.0 - difference",
        "return difference.exp() - 1.0 + difference",
    ),
    "kl_loss_without_ratio": Mistake(
        "the KL in the loss has no gradient through the ratio",
        "objectives/kl.py",
        'weight = ratio.detach() if estimator == "k2" else ratio',
        "weight = ratio.detach()",
    ),
    "kl_paid_twice": Mistake(
        "a KL penalty in the loss is paid in the reward as well",
        "rollouts/reward_shaping.py",
        'self.in_reward = settings.apply_to == "reward"',
        "self.in_reward = True",
    ),
    "warm_up_trains_policy": Mistake(
        "the policy trains during the critic's warm-up",
        "algorithms/ppo.py",
        "return self.current_epoch < self.settings.critic_warmup",
        "return False",
    ),
    "penalty_added": Mistake(
        "the penalty for a missing EOS is added to the score",
        "objectives/advantages.py",
        "torch.where(finished, scores, torch.full_like(scores, penalty))",
        "torch.where(finished, scores, scores + penalty)",
    ),
    "bootstrap_past_the_end": Mistake(
        "the value of a pad counts as the value after the end",
        "objectives/advantages.py",
        "    values = torch.where(mask, values.float(), zero)\n",
        "    values = values.float()\n",
    ),
    "stale_rollouts": Mistake(
        "all iterations learn from the first rollouts",
        "rollouts/buffer.py",
        "        self._rollout = rollout\n",
        "        self._rollout = self._rollout or rollout\n",
    ),
    "one_permutation": Mistake(
        "every epoch has the same order",
        "rollouts/buffer.py",
        'f"{self.seed}:{self._iteration}:{epoch}"',
        'f"{self.seed}:{self._iteration}"',
    ),
    "rewards_centered": Mistake(
        "whitened rewards lose their mean",
        "algorithms/ppo_iteration.py",
        "masked_whiten(rollout.rewards, mask, shift_mean=False)",
        "masked_whiten(rollout.rewards, mask)",
    ),
    "value_one_token_late": Mistake(
        "values are read after their token",
        "models/actor_critic.py",
        "return logits[:, :-1], entering[0][:, :-1]",
        "return logits[:, :-1], entering[0][:, 1:]",
    ),
    "score_at_last_column": Mistake(
        "the reward model is read at the last column, pad or not",
        "models/classifier.py",
        "head(hidden[rows, last_real_positions(attention_mask)])",
        "head(hidden[rows, -1])",
    ),
    "draws_by_chunk": Mistake(
        "draws are numbered within their chunk",
        "rollouts/sampler.py",
        "yield self.sample(prompts[chunk], draws[chunk])",
        "yield self.sample(prompts[chunk], range(len(prompts[chunk])))",
    ),
    "reference_at_temperature_1": Mistake(
        "the reference is asked at temperature 1",
        "algorithms/ppo_iteration.py",
        "token_logprobs(logits, samples.response_ids, self.temperature)",
        "token_logprobs(logits, samples.response_ids, 1.0)",
    ),
    "sampler_without_temperature": Mistake(
        "responses are sampled without the temperature",
        "rollouts/sampler.py",
        "scaled = scores.float() / self.temperature",
        "scaled = scores.float()",
    ),
}
