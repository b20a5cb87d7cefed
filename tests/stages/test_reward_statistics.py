"""To what size rewards are stretched before PPO: the std of their scores, unless they have nothing to say."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.sampler import SampledResponse, Sampler
from rlhf_lightning.stages.rewards import RewardStatistics, reward_statistics
from rlhf_lightning.stages.run_settings import RunSettings

Measure = Callable[..., list[RewardStatistics]]
Rule = Callable[[SampledResponse], float]

PROMPTS = [EncodedPrompt(Prompt(f"p{number}"), (number, 4)) for number in range(3, 12)]


@pytest.fixture
def measure(
    composed: Callable[..., RunSettings],
    make_policy: Callable[..., PreTrainedModel],
    make_scorer: Callable[[Rule], Any],
    words: PreTrainedTokenizerFast,
) -> Measure:
    """The statistics of rules on the responses of a model that ends most of them."""

    def of(*rules: Rule, count: int | None = 40, longest: int = 8) -> list[RewardStatistics]:
        policy = make_policy(initializer_range=0.02)
        assert policy.generation_config is not None
        policy.generation_config.eos_token_id = list(range(40, 50))
        sampler = Sampler(policy, words, temperature=1.0, max_new_tokens=longest, seed=0)
        value = "null" if count is None else count
        context: Any = SimpleNamespace(settings=composed(f"reward.standardize_on_reference={value}"), seed=0)
        return reward_statistics(context, sampler, [make_scorer(rule) for rule in rules], PROMPTS)

    return of


def first_token(response: SampledResponse) -> float:
    return float(response.response_ids[0])


def test_the_mean_and_spread_of_each_reward_on_the_same_finished_responses(measure: Measure) -> None:
    seen: list[float] = []

    def noted(response: SampledResponse) -> float:
        assert response.finished
        seen.append(first_token(response))
        return seen[-1]

    plain, scaled = measure(noted, lambda response: 0.1 * first_token(response) - 3.0)
    assert 20 < len(seen) < 40
    assert plain.mean == pytest.approx(statistics.mean(seen), rel=1e-5)
    assert plain.std == pytest.approx(statistics.stdev(seen), rel=1e-5)
    assert scaled.mean == pytest.approx(0.1 * plain.mean - 3.0, rel=1e-4)
    assert scaled.std == pytest.approx(0.1 * plain.std, rel=1e-4)


def test_a_reward_that_says_next_to_nothing_is_not_stretched(
    measure: Measure, caplog: pytest.LogCaptureFixture
) -> None:
    """Scores of a std of about 14 * 0.001: divided by it they would be as large as any reward's."""
    with caplog.at_level(logging.WARNING):
        alike, telling = measure(lambda response: 2.0 + 0.001 * first_token(response), first_token)
    assert alike.std == 0.05
    assert alike.mean == pytest.approx(2.0, abs=0.05)
    assert telling.std > 5.0
    assert "hardly tells the starting policy's responses apart" in caplog.text


def test_a_reward_with_something_to_say_brings_no_warning(measure: Measure, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        measure(first_token)
    assert not caplog.records


def test_where_nothing_is_measured_scores_stay_as_they_are(measure: Measure) -> None:
    assert measure(first_token, count=None) == [RewardStatistics(mean=0.0, std=1.0)]


def test_too_few_finished_responses_are_an_error(measure: Measure) -> None:
    with pytest.raises(DataError, match="end themselves: too few to standardize") as caught:
        measure(first_token, count=8, longest=1)
    assert caught.value.where == "reward.standardize_on_reference"
