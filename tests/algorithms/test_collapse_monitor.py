"""How alike rollouts are, counted by hand."""

from __future__ import annotations

from typing import cast

import pytest

from rlhf_lightning.algorithms.ppo_iteration import CollectedRollouts
from rlhf_lightning.algorithms.rollout_callbacks import collapse_monitor
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.buffer import Rollout
from rlhf_lightning.rollouts.sampler import SampledResponse

EOS = 0


def figures(*responses: tuple[int, ...]) -> dict[str, float]:
    """Of responses that ended themselves where their last token is `EOS`."""
    responses = tuple(SampledResponse(Prompt("x"), (), response, "", response[-1] == EOS) for response in responses)
    return collapse_monitor(0, CollectedRollouts(cast(Rollout, None), responses, {}))


def test_openings_and_pairs_of_a_batch() -> None:
    seen = figures((1, 2, 3, EOS), (1, 2, 3, 4, EOS), (5, 6, 7, EOS), (8, EOS))
    assert seen["rollout/top_opening_share"] == 0.5
    # 12 23 / 12 23 34 / 56 67: five kinds among seven. With the end-of-sequence token there would be 9 among 11.
    assert seen["rollout/distinct_2"] == pytest.approx(5 / 7)


def test_a_response_that_was_cut_off_has_no_end_to_take_away() -> None:
    assert figures((1, 2))["rollout/distinct_2"] == 1.0
    assert figures((1, EOS))["rollout/distinct_2"] == 0.0, "a single token makes no pair"


def test_one_response_to_everybody() -> None:
    seen = figures(*[(1, 2, 3, 4, EOS)] * 8)
    assert seen == {"rollout/top_opening_share": 1.0, "rollout/distinct_2": pytest.approx(3 / 24)}
