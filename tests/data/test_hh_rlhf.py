"""Transcripts of Human and Assistant turns."""

from __future__ import annotations

import pytest

from rlhf_lightning.data.formats import parse_hh_rlhf
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Message, Preference, Prompt

OPENING = "\n\nHuman: May I?\n\nAssistant: What?\n\nHuman: Ask: why"


def test_several_turns_are_shared_and_the_last_response_is_compared() -> None:
    fields = {"chosen": f"{OPENING}\n\nAssistant: Because.\n\nYes.", "rejected": f"{OPENING}\n\nAssistant:"}
    prompt = Prompt((Message("user", "May I?"), Message("assistant", "What?"), Message("user", "Ask: why")))
    assert parse_hh_rlhf(fields, "here:1") == Preference(prompt, "Because.\n\nYes.", "")


def test_two_turns_of_one_speaker_are_one_turn() -> None:
    fields = {
        "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nHuman: b\n\nAssistant: e",
    }
    assert parse_hh_rlhf(fields, "here:1") == Preference(Prompt((Message("user", "a\n\nb"),)), "c\n\nd", "e")


@pytest.mark.parametrize(
    ("chosen", "rejected", "field", "what"),
    [
        ("no transcript", f"{OPENING}\n\nAssistant: b", "chosen", "does not begin with"),
        ("", f"{OPENING}\n\nAssistant: b", "chosen", "does not begin with"),
        (None, f"{OPENING}\n\nAssistant: b", "chosen", "is missing"),
        (7, f"{OPENING}\n\nAssistant: b", "chosen", "got int"),
        (OPENING, f"{OPENING}\n\nAssistant: b", "chosen", "does not end with an Assistant turn"),
        ("\n\nAssistant: a", "\n\nAssistant: b", "chosen", "no Human turn"),
        ("\n\nHuman:\n\nAssistant: a", "\n\nHuman:\n\nAssistant: b", "chosen", "no text before the response"),
        (f"{OPENING}\n\nAssistant: b", f"{OPENING}\n\nAssistant: b", "rejected", "same transcript"),
        (f"{OPENING}\n\nAssistant: b", "\n\nHuman: x\n\nAssistant: b", "rejected", "prompts are not equal"),
    ],
)
def test_what_is_no_pair_of_transcripts_is_refused(chosen: object, rejected: object, field: str, what: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_hh_rlhf({"chosen": chosen, "rejected": rejected}, "hh.jsonl:3")
    assert caught.value.where == f"hh.jsonl:3, field '{field}'"
    assert what in caught.value.what
