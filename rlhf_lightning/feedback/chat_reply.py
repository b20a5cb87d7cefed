"""Parse a chat completions server's reply into a choice between two options."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Mass = tuple[float, float]

WRAPPING = " \t\r\n▁ĠĊ()[]{}<>\"'`*_.,:;"
"""Characters that may surround an option within a token; ▁ and Ġ stand for a space, Ċ for a new line."""


@dataclass(frozen=True, slots=True)
class Position:
    """Token probabilities at one position.

    Attributes:
        token: what it did say.
        probability: of that.
        top: the likeliest tokens and their probabilities, that one among them.
    """

    token: str
    probability: float
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A reply of a chat completions server.

    Attributes:
        text: empty where it refused, or said nothing.
        cut_off: whether it was stopped at the most tokens that it might write.
        positions: its tokens with their rivals; None where the server gives no probabilities.
        input_tokens, output_tokens: 0 where the server does not count.
    """

    text: str
    cut_off: bool
    positions: tuple[Position, ...] | None
    input_tokens: int
    output_tokens: int


def read_reply(body: str) -> ChatReply | None:
    """A server's body as a reply; None where it is none: no JSON, no choice, no message."""
    try:
        fields = json.loads(body)
    except ValueError:
        return None
    choices = _mapping(fields).get("choices")
    choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    if not isinstance(choice.get("message"), Mapping):
        return None
    content, usage = choice["message"].get("content"), _mapping(_mapping(fields).get("usage"))
    return ChatReply(
        text=content if isinstance(content, str) else "",
        cut_off=choice.get("finish_reason") == "length",
        positions=_positions(choice.get("logprobs")),
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
    )


def mass_in_probabilities(positions: Sequence[Position], options: tuple[str, str], opening: str = "") -> Mass:
    """The probability that the reply names each option at once.

    An option counts in all its spellings: alone or with a space, bracket, quote or point, and a word also with a
    capital letter or in capitals. Where the model began with such a sign alone, or with the words of the question's
    `opening`, the place after it counts as well, with the probability that it began so.
    """
    spellings = [_spellings(option) for option in options]
    lead, said = _words(opening), ""
    found = [0.0, 0.0]
    reach = 1.0
    for position in positions:
        for token, probability in position.top:
            for index, own in enumerate(spellings):
                found[index] += reach * probability * (token.strip(WRAPPING) in own)
        said += position.token
        reach *= position.probability
        if not lead.startswith(_words(said)):
            break
    return found[0], found[1]


def mass_in_text(text: str, options: tuple[str, str]) -> Mass:
    """All for the option that the text names first, as a word of its own; a single letter counts as it is written."""
    return _all_for(_named(text, options)[:1], options)


def mass_in_reasoning(reply: ChatReply, options: tuple[str, str], conclusion: str) -> Mass:
    """All for the option at the end of the reasoning: the first after the last `conclusion`, else the last one.

    Of reasoning that was cut off before its conclusion, the last option is only where it happened to be.
    """
    lead = conclusion.strip(WRAPPING)
    _, *after = re.split(re.escape(lead), reply.text, flags=re.IGNORECASE) if lead else [reply.text]
    concluded = _named(after[-1], options)[:1] if after else []
    if concluded or reply.cut_off:
        return _all_for(concluded, options)
    return _all_for(_named(reply.text, options)[-1:], options)


def _named(text: str, options: tuple[str, str]) -> list[str]:
    """The options that stand in a text, in order."""
    meant = {spelling: option for option in options for spelling in _spellings(option)}
    words = "|".join(re.escape(spelling) for spelling in sorted(meant, key=len, reverse=True))
    return [meant[word] for word in re.findall(rf"(?<!\w)(?:{words})(?!\w)", text)]


def _spellings(option: str) -> frozenset[str]:
    """A letter is itself (a small "a" is an article); a word may be written small, with a capital, or in capitals."""
    word = option.strip(WRAPPING)
    return frozenset({word} if len(word) == 1 else {word, word.lower(), word.capitalize(), word.upper()})


def _words(text: str) -> str:
    """A text as it is compared: small letters, single spaces, nothing around it."""
    return " ".join(re.sub(r"[▁ĠĊ]", " ", text).casefold().split()).strip(WRAPPING)


def _all_for(named: Sequence[str], options: tuple[str, str]) -> Mass:
    return (float(options[0] in named), float(options[1] in named))


def _positions(logprobs: Any) -> tuple[Position, ...] | None:
    entries = _mapping(logprobs).get("content")
    return tuple(map(_position, entries)) if isinstance(entries, list) else None


def _position(entry: Any) -> Position:
    token, probability = _rival(entry) or ("", 0.0)
    rivals = _mapping(entry).get("top_logprobs")
    top = [rival for rival in map(_rival, rivals if isinstance(rivals, list) else []) if rival is not None]
    if token not in dict(top):
        top.append((token, probability))
    return Position(token, probability, tuple(top))


def _rival(entry: Any) -> tuple[str, float] | None:
    """A token and its probability; None where the entry does not say."""
    token, logprob = _mapping(entry).get("token"), _mapping(entry).get("logprob")
    if not isinstance(token, str) or not isinstance(logprob, int | float) or math.isnan(logprob):
        return None
    return token, math.exp(min(logprob, 0.0))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0
