"""From samples to a rollout with rewards and advantages, whatever the chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.algorithms import ppo_iteration as collecting
from rlhf_lightning.algorithms.ppo_iteration import RolloutCollector, Share
from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.objectives.masked_stats import masked_mean, masked_variance
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.sampler import SampledResponse, Sampler, Samples

MakeModel = Callable[..., PreTrainedModel]
MakeCollector = Callable[..., RolloutCollector]
Padded = Callable[..., tuple[Tensor, Tensor]]

EOS = 1
ROWS = [
    ((5, 9, 7), (12, 30, 8, EOS)),
    ((11,), (20, EOS)),
    ((6, 6, 40, 33, 21), (17, 18, 19)),
    ((4,), (EOS,)),
    ((8, 9), (44, 45, 46, 47, 48)),
    ((3, 4), (33, EOS)),
]
"""(prompt, response) of six rollouts; the third and the fifth did not end themselves."""
PROMPTS = [EncodedPrompt(Prompt("w"), prompt) for prompt, _ in ROWS]
DRAWS = range(len(ROWS))
LENGTHS = torch.tensor([len(response) for _, response in ROWS])
TOKENS = int(LENGTHS.sum())


class Prepared:
    """In a sampler's place: the same responses to the same prompts, padded as each chunk needs it."""

    pad_id = 0

    def __init__(self, padded: Padded) -> None:
        self.padded = padded

    def sample_in_chunks(
        self, prompts: Sequence[EncodedPrompt], draws: Sequence[int], chunk_size: int
    ) -> Iterator[Samples]:
        assert len(draws) == len(prompts)
        responses = dict(ROWS)
        for start in range(0, len(prompts), chunk_size):
            yield self._samples([(prompt, responses[prompt.prompt_ids]) for prompt in prompts[start:][:chunk_size]])

    def _samples(self, rows: list[tuple[EncodedPrompt, tuple[int, ...]]]) -> Samples:
        prompt_width = max(len(prompt.prompt_ids) for prompt, _ in rows)
        response_width = max(len(response) for _, response in rows)
        ids = [(prompt.prompt_ids, response) for prompt, response in rows]
        sequences, mask = self.padded(ids, prompt_width, response_width, self.pad_id)
        responses = tuple(
            SampledResponse(prompt.prompt, prompt.prompt_ids, response, "", response[-1] == EOS)
            for prompt, response in rows
        )
        response_mask = mask[:, prompt_width:].bool()
        return Samples(sequences, mask, response_mask, torch.zeros(response_mask.shape), responses)


def score(response: SampledResponse) -> float:
    return float(response.response_ids[0]) / 10.0


@pytest.fixture
def sampler(padded: Padded) -> Prepared:
    return Prepared(padded)


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 5])
def test_the_chunk_size_changes_nothing(
    chunk_size: int, sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    policy, reference = make_policy(), make_policy(seed=1)
    whole, chunked = (
        make_collector(policy, score, reference=reference, sampler=sampler, chunk_size=size).collect(PROMPTS, DRAWS)
        for size in (6, chunk_size)
    )
    assert whole.responses == chunked.responses
    for name in ("sequences", "attention_mask", "response_mask", "raw_scores", "scores", "finished"):
        assert torch.equal(getattr(whole.rollout, name), getattr(chunked.rollout, name)), name
    mask = whole.rollout.response_mask
    for name in ("logprobs", "reference_logprobs", "kl", "values", "rewards", "advantages", "returns"):
        difference = (getattr(whole.rollout, name) - getattr(chunked.rollout, name))[mask]
        assert difference.abs().max() < 1e-5, name
        assert difference.mean().abs() < 2e-6, name
    for name, value in whole.metrics.items():
        if not name.startswith("time/") and name != "rollout/tokens_per_second":
            assert chunked.metrics[name] == pytest.approx(value, abs=1e-5), name


def test_a_constant_reward_is_logged_exactly(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    collected = make_collector(make_policy(), lambda _: 3.7, sampler=sampler).collect(PROMPTS, DRAWS)
    assert collected.metrics["objective/score"] == float(torch.tensor(3.7))
    # Without any divergence from the reference the whole reward is the score.
    assert collected.metrics["objective/reward"] == pytest.approx(3.7)


def test_the_first_rollouts_kl_to_the_reference_is_0(make_policy: MakeModel, make_collector: MakeCollector) -> None:
    for kind in ("llama", "gpt2"):
        collected = make_collector(make_policy(kind), score, temperature=0.7).collect(PROMPTS, DRAWS)
        # But for the last bit of a float32: log-probs here are of the order of -10.
        assert collected.metrics["objective/kl"] == pytest.approx(0.0, abs=1e-5)
        rollout = collected.rollout
        torch.testing.assert_close(rollout.logprobs, rollout.reference_logprobs, atol=5e-6, rtol=0)


def test_every_rewards_sum_is_the_score_less_the_priced_kl(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    policy, reference = make_policy(), make_policy(seed=1)
    rollout = (
        make_collector(policy, score, reference=reference, sampler=sampler, kl_coef=0.3).collect(PROMPTS, DRAWS).rollout
    )
    for row, (prompt, response) in enumerate(ROWS):
        ids = torch.tensor([[*prompt, *response]])
        divergence = 0.0
        for step, token in enumerate(response):
            place = len(prompt) + step - 1
            ours, theirs = (torch.log_softmax(model(ids).logits[0, place], dim=-1) for model in (policy, reference))
            on_token = (ours[token] - theirs[token]).item()
            divergence += on_token
            expected = -0.3 * on_token + (response[0] / 10.0 if step == len(response) - 1 else 0.0)
            assert float(rollout.rewards[row, step]) == pytest.approx(expected, abs=1e-4)
        assert abs(divergence) > 0.05, "a divergence that tests something"
        assert float(rollout.rewards[row].sum()) == pytest.approx(response[0] / 10.0 - 0.3 * divergence, abs=1e-4)


def test_a_coefficient_of_0_measures_the_kl_only(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    collector = make_collector(make_policy(), score, reference=make_policy(seed=1), sampler=sampler, kl_coef=0.0)
    collected = collector.collect(PROMPTS, DRAWS)
    assert collected.metrics["objective/kl"] != 0.0
    assert collected.metrics["objective/reward"] == pytest.approx(collected.metrics["objective/score"])


def test_unfinished_responses_get_the_penalty_instead_of_their_score(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    own = torch.tensor([response[0] / 10.0 for _, response in ROWS])
    policy = make_policy()
    free = make_collector(policy, score, sampler=sampler, missing_eos_penalty=None).collect(PROMPTS, DRAWS)
    assert torch.equal(free.rollout.scores, own)
    fined = make_collector(policy, score, sampler=sampler, missing_eos_penalty=-1.0).collect(PROMPTS, DRAWS)
    own[[2, 4]] = -1.0
    assert torch.equal(fined.rollout.scores, own)
    # It lands on the last token of the response.
    assert fined.rollout.rewards[2].tolist() == [0.0, 0.0, -1.0, 0.0, 0.0]


def test_advantages_are_whitened_over_the_whole_batch_and_returns_are_not(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    policy, reference = make_policy(), make_policy(seed=1)
    raw, whitened = (
        make_collector(policy, score, reference=reference, sampler=sampler, chunk_size=2, whiten=whiten)
        .collect(PROMPTS, DRAWS)
        .rollout
        for whiten in (False, True)
    )
    mask = raw.response_mask
    assert masked_mean(whitened.advantages, mask).item() == pytest.approx(0.0, abs=1e-6)
    assert masked_variance(whitened.advantages, mask).item() == pytest.approx(1.0, abs=1e-5)
    real = raw.advantages[mask]
    expected = (real - real.mean()) / real.std(correction=0)
    torch.testing.assert_close(whitened.advantages[mask], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(raw.returns, whitened.returns, atol=1e-5, rtol=0)
    torch.testing.assert_close(raw.returns[mask], (raw.advantages + raw.values)[mask])


def test_gamma_and_lambda_reach_the_advantages(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    # The new value head says 0: a response of 4 tokens with score 1.2 has discounted returns 1.2 * (1/2)^(3, 2, 1, 0).
    collector = make_collector(
        make_policy(), score, sampler=sampler, whiten=False, gamma=0.5, gae_lambda=1.0, missing_eos_penalty=None
    )
    rollout = collector.collect(PROMPTS, DRAWS).rollout
    torch.testing.assert_close(rollout.advantages[0, :4], torch.tensor([0.15, 0.3, 0.6, 1.2]))


def test_metrics_count_tokens_and_not_padding(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    policy, reference = make_policy(), make_policy(seed=1)
    collected = make_collector(
        policy, score, reference=reference, sampler=sampler, kl_coef=0.2, missing_eos_penalty=-1.0
    ).collect(PROMPTS, DRAWS)
    mask, metrics = collected.rollout.response_mask, collected.metrics
    scores = [1.2, 2.0, -1.0, 0.1, -1.0, 3.3]
    assert metrics["rollout/length"] == pytest.approx(TOKENS / 6)
    assert metrics["rollout/eos_rate"] == pytest.approx(4 / 6)
    assert metrics["objective/score"] == pytest.approx(sum(scores) / 6)
    kl = (collected.rollout.logprobs - collected.rollout.reference_logprobs)[mask].sum().item() / 6
    assert metrics["objective/kl"] == pytest.approx(kl, rel=1e-5)
    assert metrics["objective/reward"] == pytest.approx(sum(scores) / 6 - 0.2 * kl, rel=1e-5)
    assert metrics["objective/entropy"] == pytest.approx(-collected.rollout.logprobs[mask].mean().item(), rel=1e-5)
    assert metrics["value/mean"] == 0.0
    assert metrics["value/explained_variance"] == 0.0
    assert metrics["kl/coef"] == 0.2
    assert all(math.isfinite(value) for value in metrics.values())


def test_rollouts_carry_no_gradient(sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector) -> None:
    rollout = make_collector(make_policy(), score, sampler=sampler).collect(PROMPTS, DRAWS).rollout
    assert not any(tensor.requires_grad for tensor in rollout._tensors().values())


def test_every_part_is_left_in_the_mode_that_it_was_in(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    # Put back into training as a whole, a policy in evaluation mode would get its dropout back.
    collector = make_collector(make_policy("gpt2"), score, sampler=sampler)
    model = collector.actor_critic.train()
    model.policy.eval()
    heard: set[bool] = set()
    model.policy.register_forward_hook(lambda module, _inputs, _output: heard.add(module.training))
    for policy_trains in (False, True):
        model.policy.train(policy_trains)
        before = {name: part.training for name, part in model.named_modules()}
        collector.collect(PROMPTS, DRAWS)
        assert {name: part.training for name, part in model.named_modules()} == before
    assert heard == {False}


def test_everything_happens_under_the_given_precision(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    policy = make_policy()
    collector = make_collector(policy, score, sampler=sampler, chunk_size=6)
    heard: list[torch.dtype] = []
    for model in (policy, collector.reference.model):
        head: Any = model.get_output_embeddings()
        head.register_forward_hook(lambda _module, _inputs, output: heard.append(output.dtype))
    collector.collect(PROMPTS, DRAWS, torch.autocast("cpu", dtype=torch.bfloat16))
    collector.collect(PROMPTS, DRAWS, nullcontext())
    assert heard == 2 * [torch.bfloat16] + 2 * [torch.float32]


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3", "exact"])
def test_the_estimate_that_is_paid_for_is_the_one_that_was_chosen(
    estimator: str, sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector, make_kl: Any
) -> None:
    policy, reference = make_policy(), make_policy(seed=1)
    kl = make_kl("fixed", estimator=estimator, coef=0.3)
    collected = make_collector(
        policy, lambda _: 0.0, reference=reference, sampler=sampler, kl=kl, temperature=0.7
    ).collect(PROMPTS, DRAWS)
    paid = 0.0
    for row, (prompt, response) in enumerate(ROWS):
        ids = torch.tensor([[*prompt, *response]])
        for step, token in enumerate(response):
            place = len(prompt) + step - 1
            ours, theirs = (torch.log_softmax(m(ids).logits[0, place] / 0.7, dim=-1) for m in (policy, reference))
            d = (ours[token] - theirs[token]).item()
            by_hand = {
                "k1": d,
                "k2": d * d / 2,
                "k3": math.exp(-d) - 1 + d,
                "exact": (ours.exp() * (ours - theirs)).sum().item(),
            }
            assert collected.rollout.kl[row, step].item() == pytest.approx(by_hand[estimator], rel=1e-4, abs=1e-4)
            assert collected.rollout.rewards[row, step].item() == pytest.approx(-0.3 * by_hand[estimator], abs=1e-4)
            paid += by_hand[estimator]
    assert collected.metrics["objective/kl_penalized"] == pytest.approx(paid / 6, rel=1e-4)
    assert collected.metrics["objective/reward"] == pytest.approx(-0.3 * paid / 6, rel=1e-4)


def test_a_penalty_in_the_loss_leaves_the_rewards_alone(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector, make_kl: Any
) -> None:
    collector = make_collector(
        make_policy(), score, reference=make_policy(seed=1), sampler=sampler, kl=make_kl("fixed", apply_to="loss")
    )
    metrics = collector.collect(PROMPTS, DRAWS).metrics
    assert metrics["kl/coef"] == 0.1
    assert metrics["objective/reward"] == pytest.approx(metrics["objective/score"])


def test_rewards_are_whitened_before_advantages_and_keep_their_mean(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    # The value head says 0 and gamma and lambda are 1: the advantage of a token is the sum of the rewards from it on.
    rollout = (
        make_collector(
            make_policy(),
            score,
            reference=make_policy(seed=1),
            sampler=sampler,
            whiten=False,
            whiten_rewards=True,
            gae_lambda=1.0,
        )
        .collect(PROMPTS, DRAWS)
        .rollout
    )
    mask = rollout.response_mask
    real = rollout.rewards[mask].double()
    whitened = torch.zeros(mask.shape, dtype=torch.float64)
    whitened[mask] = (real - real.mean()) / real.std(correction=0) + real.mean()
    expected = whitened.flip(1).cumsum(1).flip(1).masked_fill(~mask, 0.0)
    torch.testing.assert_close(rollout.advantages, expected.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rollout.returns, expected.float(), atol=1e-5, rtol=1e-5)


def test_the_shaped_score_is_what_is_learned_from_and_the_raw_one_is_kept(
    sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    shaping = {"scale": 2.0, "clip": 3.0, "length_penalty": 0.25}
    collected = make_collector(make_policy(), score, sampler=sampler, reward=shaping, missing_eos_penalty=-1.0).collect(
        PROMPTS, DRAWS
    )
    raw = [1.2, 2.0, 1.7, 0.1, 4.4, 3.3]
    # Twice as much within 3, less a quarter of 4, 2, 1 and 2 tokens; the third and the fifth did not end themselves.
    shaped = [2.4 - 1.0, 3.0 - 0.5, -1.0, 0.2 - 0.25, -1.0, 3.0 - 0.5]
    assert collected.rollout.raw_scores.tolist() == pytest.approx(raw)
    assert collected.rollout.scores.tolist() == pytest.approx(shaped)
    assert collected.metrics["objective/raw_score"] == pytest.approx(sum(raw) / 6)
    assert collected.metrics["objective/score"] == pytest.approx(sum(shaped) / 6)
    deviation = torch.tensor(shaped).std(correction=0).item()
    assert collected.metrics["objective/score_std"] == pytest.approx(deviation)
    correlation = torch.corrcoef(torch.stack([torch.tensor(shaped), LENGTHS.float()]))[0, 1].item()
    assert collected.metrics["rollout/score_length_correlation"] == pytest.approx(correlation, abs=1e-6)


@pytest.mark.parametrize(("worth", "expected"), [(1.0, 1.0), (-2.0, -1.0), (0.0, 0.0)])
def test_scores_that_follow_the_length_correlate_with_it(
    worth: float, expected: float, sampler: Prepared, make_policy: MakeModel, make_collector: MakeCollector
) -> None:
    collector = make_collector(make_policy(), lambda done: worth * len(done.response_ids), sampler=sampler)
    correlation = collector.collect(PROMPTS, DRAWS).metrics["rollout/score_length_correlation"]
    assert correlation == pytest.approx(expected, abs=1e-6)


def test_a_sampler_at_another_temperature_is_seen(
    make_policy: MakeModel, make_collector: MakeCollector, words: PreTrainedTokenizerFast
) -> None:
    policy = make_policy()
    right = make_collector(policy, score, temperature=0.7).collect(PROMPTS, DRAWS)
    assert right.metrics["rollout/logprob_mismatch"] == pytest.approx(0.0, abs=1e-5)
    warm = Sampler(policy, words, temperature=1.0, max_new_tokens=5, seed=0)
    wrong = make_collector(policy, score, temperature=0.7, sampler=warm).collect(PROMPTS, DRAWS)
    assert wrong.metrics["rollout/logprob_mismatch"] > 0.05
    mask = wrong.rollout.response_mask
    difference = (wrong.rollout.sampled_logprobs - wrong.rollout.logprobs)[mask].abs().mean().item()
    assert wrong.metrics["rollout/logprob_mismatch"] == pytest.approx(difference, rel=1e-5)


def test_what_two_processes_have_sampled_is_one_batch_in_the_order_of_its_prompts(
    make_policy: MakeModel, make_collector: MakeCollector, padded: Padded, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = make_collector(make_policy(), lambda done: float(done.response_ids[0]), sampler=Prepared(padded))
    alone = collector.collect(PROMPTS, DRAWS)
    monkeypatch.setattr(collecting, "world_size", lambda: 2)
    shares: list[Share] = []
    for rank in (1, 0):
        monkeypatch.setattr(collecting, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(collecting, "all_gather_object", lambda own: shares.append(own) or [own, own])
        collector.collect(PROMPTS, DRAWS)
    second, first = shares
    slower = [replace(first, generating=1.0, scoring=5.0), replace(second, generating=4.0, scoring=2.0)]
    monkeypatch.setattr(collecting, "all_gather_object", lambda _: slower)
    together = collector.collect(PROMPTS, DRAWS)
    assert together.responses == alone.responses
    assert torch.equal(together.rollout.response_mask, alone.rollout.response_mask)
    torch.testing.assert_close(together.rollout.scores, alone.rollout.scores)
    # Each process waits for the slowest one, in generation and in scoring.
    assert (together.metrics["time/generate"], together.metrics["time/score"]) == (4.0, 5.0)
    assert together.metrics["rollout/tokens_per_second"] == TOKENS / 4.0
