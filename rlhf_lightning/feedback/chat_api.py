"""OpenAI's chat completions protocol: requests from questions, parsed responses, classified errors, request rate."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlhf_lightning.errors import JudgeError
from rlhf_lightning.feedback.judge_model import Question
from rlhf_lightning.feedback.settings import OpenAiJudge

if TYPE_CHECKING:
    from openai import APIError, APIStatusError


OPENING_TOKENS = 8
"""Tokens written where probabilities are read: an option may stand behind a bracket, or behind "The answer is"."""
TEXT_TOKENS = 16
"""Tokens written where the text is read: "The better response is (B)." has 7."""
CONCLUDING_TOKENS = 32
"""Tokens that may follow on the reasoning."""
RIVALS, FEWER_TOP_LOGPROBS = 20, 5
"""Likeliest tokens asked for: the most that OpenAI and vLLM give, and what is asked of a server that gives fewer."""


def chat_request(question: Question, settings: OpenAiJudge) -> dict[str, Any]:
    """The request that asks a question: greedy, but for reasoning, which is sampled anew for each vote.

    A server cannot be made to go on from the question's `opening`, so its last turn must ask for the option; one that
    begins with these words all the same is understood.
    """
    messages = [{"role": turn.role, "content": turn.content} for turn in question.turns]
    request = {"model": settings.model, "messages": messages}
    if question.reasons:
        longest = settings.max_reasoning_tokens + CONCLUDING_TOKENS
        return {**request, "temperature": 1.0, "seed": question.vote, "max_tokens": longest}
    if settings.logprobs:
        return {**request, "temperature": 0.0, "max_tokens": OPENING_TOKENS, "logprobs": True}
    return {**request, "temperature": 0.0, "max_tokens": TEXT_TOKENS}


def with_top_logprobs(request: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The request as it is sent: it asks for so many of the likeliest tokens, where it asks for probabilities."""
    return {**request, "top_logprobs": count} if "logprobs" in request else dict(request)


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
class ChatResponse:
    """A response of a chat completions server.

    Attributes:
        text: empty where it refused, or said nothing.
        cut_off: whether it was stopped at the most tokens that it might write.
        positions: its tokens with their top_logprobs; None where the server gives no probabilities.
        input_tokens, output_tokens: 0 where the server does not count.
    """

    text: str
    cut_off: bool
    positions: tuple[Position, ...] | None
    input_tokens: int
    output_tokens: int


def read_response(body: str) -> ChatResponse | None:
    """A server's body as a response; None where it is none: no JSON, no choice, no message."""
    try:
        fields = json.loads(body)
    except ValueError:
        return None
    choices = _mapping(fields).get("choices")
    choice = _mapping(choices[0]) if isinstance(choices, list) and choices else {}
    if not isinstance(choice.get("message"), Mapping):
        return None
    content, usage = choice["message"].get("content"), _mapping(_mapping(fields).get("usage"))
    return ChatResponse(
        text=content if isinstance(content, str) else "",
        cut_off=choice.get("finish_reason") == "length",
        positions=_positions(choice.get("logprobs")),
        input_tokens=_count(usage.get("prompt_tokens")),
        output_tokens=_count(usage.get("completion_tokens")),
    )


def mass_in_probabilities(positions: Sequence[Position], options: tuple[str, str], opening: str = "") -> Mass:
    """The probability that the response names each option at once.

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


def mass_in_reasoning(response: ChatResponse, options: tuple[str, str], conclusion: str) -> Mass:
    """All for the option at the end of the reasoning: the first after the last `conclusion`, else the last one.

    Of reasoning that was cut off before its conclusion, the last option is only where it happened to be.
    """
    lead = conclusion.strip(WRAPPING)
    _, *after = re.split(re.escape(lead), response.text, flags=re.IGNORECASE) if lead else [response.text]
    concluded = _named(after[-1], options)[:1] if after else []
    if concluded or response.cut_off:
        return _all_for(concluded, options)
    return _all_for(_named(response.text, options)[-1:], options)


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
    top_logprobs = _mapping(entry).get("top_logprobs")
    top = [rival for rival in map(_rival, top_logprobs if isinstance(top_logprobs, list) else []) if rival is not None]
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


BAD_REQUEST = (400, 422)
"""HTTP status codes of a request that a server understood and refused."""

LONGEST_WORDS = 300
"""Maximum number of characters shown of a server's message."""

OF_THE_QUESTION = ("content_filter", "content_policy_violation", "context_length_exceeded", "maximum context length")
"""Error codes and messages of a server that rejects the text of a question."""


def error_message(error: APIError) -> str:
    """The server's error message, in one line."""
    body = error.body
    fields = body if isinstance(body, Mapping) else {}
    said = fields.get("message") or fields.get("detail") or body or error.message
    text = " ".join(str(said).split())
    return text if len(text) <= LONGEST_WORDS else f"{text[:LONGEST_WORDS]}..."


def is_about_question(error: APIError, has_worked: bool) -> bool:
    """True if a request failed because of its question's text, so that other questions may succeed.

    Args:
        has_worked: requests with the same parameters have been answered.
    """
    import openai  # here, since it is an extra

    if not isinstance(error, openai.APIStatusError) or error.status_code not in BAD_REQUEST:
        return False
    return has_worked or any(sign in f"{error.code} {error_message(error)}" for sign in OF_THE_QUESTION)


def explained(error: APIError, settings: OpenAiJudge, api_key: str | None) -> JudgeError:
    """The error that a user reads, after the last try; a server that repeats the key is not quoted with it."""
    import openai  # here, since it is an extra

    tries = f"{settings.max_retries + 1} tries" if settings.max_retries else "one try"
    if isinstance(error, openai.APITimeoutError):
        return JudgeError(
            f"The judge's server did not answer within {settings.timeout:g} seconds, in {tries}.",
            where=f"judge.base_url={settings.base_url}",
            fix="raise judge.timeout, or lower judge.concurrency; answers so far are in judge.cache",
        )
    if not isinstance(error, openai.APIStatusError):
        return JudgeError(
            f"The judge's server cannot be reached, in {tries}: {error.__cause__ or error.message}",
            where=f"judge.base_url={settings.base_url}",
            fix="start the server, or mend judge.base_url; more judge.max_retries wait longer for one that restarts",
        )
    said = error_message(error)
    if api_key:
        said = said.replace(api_key, "<redacted>")
    return _of_status(error, settings, tries, said)


def _of_status(error: APIStatusError, settings: OpenAiJudge, tries: str, said: str) -> JudgeError:
    status, server = error.status_code, f"judge.base_url={settings.base_url}"
    if status in (401, 403):
        return JudgeError(
            f"The judge's server does not let us in ({status}): {said}",
            where=f"{server}, judge.api_key_env={settings.api_key_env or 'null'}",
            fix=f"export {settings.api_key_env} with a valid key"
            if settings.api_key_env
            else "set judge.api_key_env=NAME, and export NAME with the key",
        )
    if status == 404:
        return JudgeError(
            f"The judge's server knows no such model or address (404): {said}",
            where=f"judge.model={settings.model}, {server}",
            fix="name the model as the server does (it lists them at /models); the address usually ends in /v1",
        )
    if status == 429:
        return JudgeError(
            f"The judge's server still turns requests away after {tries} (429): {said}",
            where=server,
            fix="set judge.requests_per_minute to what it allows, or lower judge.concurrency; answers so far are in "
            "judge.cache",
        )
    if status in BAD_REQUEST:
        return JudgeError(
            f"The judge's server does not take the request ({status}): {said}",
            where=f"judge.model={settings.model}, {server}",
            fix="set judge.logprobs=false"
            if settings.logprobs and "logprobs" in said
            else "check judge.model, and what the server says",
        )
    return JudgeError(
        f"The judge's server fails, in {tries} ({status}): {said}", where=server, fix="look at the server's log"
    )


class RequestRate:
    """Keeps requests apart, so that no minute holds more than its share.

    Args:
        per_minute: at most; None: as often as one likes.
        clock: seconds.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._apart = 60.0 / per_minute if per_minute is not None else 0.0
        self._clock = clock
        self._next = clock()

    def seconds_to_wait(self) -> float:
        """0: now it is the caller's turn, and the next one's comes later. Otherwise: ask again after so long."""
        now = self._clock()
        if now < self._next:
            return self._next - now
        self._next = now + self._apart
        return 0.0
