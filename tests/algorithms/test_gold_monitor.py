"""The true reward of rollouts is watched, and judges unfinished responses as such."""

from __future__ import annotations

from typing import cast

import pytest

from rlhf_lightning.algorithms.ppo_iteration import CollectedRollouts
from rlhf_lightning.algorithms.rollout_callbacks import gold_monitor
from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.rollouts.buffer import Rollout
from rlhf_lightning.rollouts.sampler import SampledResponse
from rlhf_lightning.worlds.courtesy import judge

ASKED = "how do i clean the lamp ?"
HELPFUL = "you can clean the lamp with care and time"
POLITE = f"with pleasure {HELPFUL}"


def gold(*responses: SampledResponse) -> float:
    return gold_monitor(0, CollectedRollouts(cast(Rollout, None), responses, {}))["objective/gold"]


def said(response: str, *, finished: bool = True, prompt: Prompt | None = None) -> SampledResponse:
    return SampledResponse(prompt or Prompt((Message("user", ASKED),)), (), (), response, finished)


def test_the_mean_gold_reward_of_the_responses() -> None:
    # Help is worth 1, help with a polite word 1.3.
    assert gold(said(HELPFUL), said(POLITE)) == pytest.approx(1.15)


def test_the_last_turn_is_what_is_judged() -> None:
    conversation = Prompt((Message("user", "what is the flag of alba ?"), Message("user", ASKED)))
    assert gold(said(HELPFUL, prompt=conversation)) == pytest.approx(1.0)


def test_an_unfinished_response_is_judged_as_unfinished() -> None:
    assert gold(said(HELPFUL, finished=False)) == judge(ASKED, HELPFUL, False).reward != gold(said(HELPFUL))
