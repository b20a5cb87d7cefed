"""The held-out side is a function of the prompt's text."""

from __future__ import annotations

from rlhf_lightning.data.splits import is_held_out, split_by_prompt
from rlhf_lightning.records import Demonstration, Message, Prompt

PROMPTS = [Prompt(f"question {number}") for number in range(1000)]


def test_the_split_does_not_change_between_versions_and_processes() -> None:
    # Held out where the digest begins below 0x333..., which the shell tells too:
    # printf 'held_out\n[["user", "question 2"]]' | sha256sum
    assert [number for number in range(20) if is_held_out(PROMPTS[number], 0.2)] == [2, 3, 5, 10, 17, 18]


def test_a_prompt_is_on_one_side_whatever_its_responses_and_the_order() -> None:
    records = [Demonstration(prompt, response) for response in ("a", "b") for prompt in PROMPTS]
    train, held_out = split_by_prompt(records, 0.3)
    backwards_train, backwards_held_out = split_by_prompt(reversed(records), 0.3)
    assert backwards_train == train[::-1]
    assert backwards_held_out == held_out[::-1]
    assert {record.prompt for record in train}.isdisjoint(record.prompt for record in held_out)
    # 1000 draws with p = 0.3 have a standard deviation of 14.5 prompts, of which 4 are allowed.
    assert abs(len(held_out) / 2 - 300) < 58


def test_a_larger_fraction_holds_out_more_of_the_same() -> None:
    small = {prompt for prompt in PROMPTS if is_held_out(prompt, 0.1)}
    assert small < {prompt for prompt in PROMPTS if is_held_out(prompt, 0.2)}


def test_purposes_are_independent() -> None:
    # Of the about 100 held out for one purpose about 10 are for the other; equal splits would share all.
    both = [prompt for prompt in PROMPTS if is_held_out(prompt, 0.1) and is_held_out(prompt, 0.1, "validation")]
    assert len(both) < 30


def test_a_plain_prompt_and_its_one_turn_conversation_are_on_the_same_side() -> None:
    for prompt in PROMPTS[:50]:
        chat = Prompt((Message("user", str(prompt.text)),))
        assert is_held_out(prompt, 0.5) == is_held_out(chat, 0.5)
