"""The true reward of rollouts is watched, and judges unfinished replies as such."""

from __future__ import annotations

from typing import cast

import pytest

from rlhf_lightning.algorithms.rollout_callbacks import gold_monitor
from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.rollouts.buffer import Rollout
from rlhf_lightning.rollouts.collector import Collected
from rlhf_lightning.rollouts.sampler import Completion
from rlhf_lightning.worlds.courtesy import judge

ASKED = "how do i clean the lamp ?"
HELPFUL = "you can clean the lamp with care and time"
POLITE = f"with pleasure {HELPFUL}"


def gold(*completions: Completion) -> float:
    return gold_monitor(0, Collected(cast(Rollout, None), completions, {}))["objective/gold"]


def said(reply: str, *, finished: bool = True, prompt: Prompt | None = None) -> Completion:
    return Completion(prompt or Prompt((Message("user", ASKED),)), (), (), reply, finished)


def test_the_mean_gold_reward_of_the_replies() -> None:
    # Help is worth 1, help with a polite word 1.3.
    assert gold(said(HELPFUL), said(POLITE)) == pytest.approx(1.15)


def test_the_last_turn_is_what_is_judged() -> None:
    conversation = Prompt((Message("user", "what is the flag of alba ?"), Message("user", ASKED)))
    assert gold(said(HELPFUL, prompt=conversation)) == pytest.approx(1.0)


def test_an_unfinished_reply_is_judged_as_unfinished() -> None:
    assert gold(said(HELPFUL, finished=False)) == judge(ASKED, HELPFUL, False).reward != gold(said(HELPFUL))
