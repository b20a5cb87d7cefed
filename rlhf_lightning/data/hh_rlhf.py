"""The dialogue format of HH-RLHF: two transcripts of "Human:" and "Assistant:" turns that part at the last reply.

The data is described by Bai et al. 2022 (arXiv 2204.05862). A few transcripts let one speaker have two turns in a
row; such turns are read as one, joined by an empty line, because chat templates expect the speakers to alternate.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import NoReturn

from rlhf_lightning.data.rows import Fields
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Conversation, Message, Preference, Prompt, Role

TURN = re.compile(r"\n\n(Human|Assistant):")
SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def parse_hh_rlhf(fields: Fields, place: str, better: str = "chosen", worse: str = "rejected") -> Preference:
    """A preference from {chosen, rejected}, each a whole transcript.

    Args:
        better: the name of the field with the preferred transcript.
        worse: the name of the other one.

    Raises:
        DataError: a field is missing or is no transcript, or the transcripts differ in more than the last reply.
    """
    chosen, rejected = (parse_transcript(fields.get(name), place, name) for name in (better, worse))
    if chosen == rejected:
        _fail(place, worse, f"is the same transcript as '{better}'")
    for name, turns in ((better, chosen), (worse, rejected)):
        if turns[-1].role != "assistant":
            _fail(place, name, "does not end with an Assistant turn, the reply that was compared")
        if len(turns) < 2:
            _fail(place, name, "has no Human turn before the reply")
    if chosen[:-1] != rejected[:-1]:
        _fail(place, worse, f"differs from '{better}' before the last Assistant turn, so their prompts are not equal")
    if not any(turn.content for turn in chosen[:-1]):
        _fail(place, better, "has no text before the reply")
    return Preference(Prompt(chosen[:-1]), chosen[-1].content, rejected[-1].content)


def parse_transcript(text: object, place: str, field: str) -> Conversation:
    r"""The turns of "\n\nHuman: ...\n\nAssistant: ...", white space around each turn removed.

    Raises:
        DataError: the value is no text, or does not begin with a turn.
    """
    if not isinstance(text, str):
        found = "is missing" if text is None else f"must be a string; got {type(text).__name__}"
        _fail(place, field, found)
    opening, *parts = TURN.split("\n\n" + text.lstrip())
    if opening.strip() or not parts:
        _fail(place, field, f'does not begin with "Human:" or "Assistant:"; got {text[:40]!r}')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        Message(SPEAKERS[speaker], "\n\n".join(said.strip() for _, said in spoken).strip())
        for speaker, spoken in groupby(turns, key=lambda turn: turn[0])
    )


def _fail(place: str, field: str, what: str) -> NoReturn:
    raise DataError(
        f"'{field}' {what}.",
        where=f"{place}, field '{field}'",
        fix='write each transcript as "\\n\\nHuman: ...\\n\\nAssistant: ...", or set data.on_bad_record=skip to leave '
        "such records out and count them",
    )
