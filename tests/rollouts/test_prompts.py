"""Which prompts come next is a function of the seed."""

from __future__ import annotations

import pytest

from rlhf_lightning.data.encoding import EncodedPrompt
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.sampler import PromptStream

POOL = [EncodedPrompt(Prompt(f"w{token}"), (token,)) for token in range(3, 13)]


def taken(stream: PromptStream, count: int) -> list[int]:
    return [prompt.prompt_ids[0] for prompt in stream.take(count)]


def test_every_prompt_comes_once_a_lap() -> None:
    stream = PromptStream(POOL, seed=0)
    laps = [taken(stream, 10) for _ in range(3)]
    assert all(sorted(lap) == list(range(3, 13)) for lap in laps)
    assert laps[0] != laps[1] != laps[2]
    assert stream.taken == 30


def test_the_order_depends_on_the_seed_and_not_on_how_many_are_taken_at_once() -> None:
    at_once = taken(PromptStream(POOL, seed=0), 35)
    stream = PromptStream(POOL, seed=0)
    assert [token for count in (1, 7, 12, 15) for token in taken(stream, count)] == at_once
    assert taken(PromptStream(POOL, seed=1), 35) != at_once


def test_a_pool_may_be_smaller_than_what_is_taken() -> None:
    assert sorted(taken(PromptStream(POOL[:2], seed=0), 6)) == [3, 3, 3, 4, 4, 4]


def test_an_empty_pool_is_one_clear_error() -> None:
    with pytest.raises(DataError, match="no prompts") as raised:
        PromptStream([], seed=0)
    assert raised.value.fix
