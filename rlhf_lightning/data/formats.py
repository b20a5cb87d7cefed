"""Record formats: parse checked fields, HH-RLHF dialogues included, and write records as fields or plain text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NoReturn, get_args

from jinja2 import Environment

from rlhf_lightning.data.rows import Fields
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Conversation, Demonstration, Message, Preference, Prompt, Ranking, Role

DEFAULT_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '\n\nHuman: ' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '\n\nAssistant:' }}{% if message['content'] %}{{ ' ' + message['content'] }}{% endif %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
"""The dialogue format of HH-RLHF. A system turn is written as it is."""


def as_plain_text(turns: Conversation) -> str:
    """The prompt text for a model without a chat template."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    template = Environment(autoescape=False).from_string(DEFAULT_CHAT_TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=True)


Record = Prompt | Demonstration | Preference | Ranking

ROLES: tuple[str, ...] = get_args(Role)

RESPONSE_FIELDS = ("response", "completion", "reply")
"""Names of a response in a record; the first is written."""

RANKED_FIELDS = ("responses", "completions", "replies")
"""Names of the ranked responses in a record; the first is written."""


def parse_prompt(fields: Fields, place: str) -> Prompt:
    """A prompt from {prompt} or {messages}.

    Raises:
        DataError: as every parser here, where a field is missing, of the wrong type, or makes no sense.
    """
    if _present(fields, "prompt"):
        return _prompt(fields["prompt"], place, "prompt")
    if _present(fields, "messages"):
        return _prompt(_turns(fields["messages"], place, "messages"), place, "messages")
    return _missing(fields, place, "prompt", "a string or a list of {role, content}")


def parse_demonstration(fields: Fields, place: str) -> Demonstration:
    """A demonstration from {prompt, response} or {messages}; a response may have any name in `RESPONSE_FIELDS`."""
    if not _present(fields, "prompt") and _present(fields, "messages"):
        turns = _turns(fields["messages"], place, "messages")
        if not turns or turns[-1].role != "assistant":
            _fail(place, "messages", "must end with an assistant turn, the response to imitate", _roles(turns))
        return Demonstration(_prompt(turns[:-1], place, "messages"), turns[-1].content)
    name = _name_of(fields, RESPONSE_FIELDS)
    prompt, (response,) = _prompt_and_responses(fields, place, {name: fields.get(name)})
    return Demonstration(prompt, response)


def parse_preference(fields: Fields, place: str) -> Preference:
    """A preference from {prompt, chosen, rejected, margin?, probability?}, or from two whole conversations."""
    for name in ("chosen", "rejected"):
        if not _present(fields, name):
            _missing(fields, place, name, "a string or a list of {role, content}")
    if _present(fields, "prompt"):
        responses = {name: fields[name] for name in ("chosen", "rejected")}
        prompt, (chosen, rejected) = _prompt_and_responses(fields, place, responses)
    else:
        prompt, chosen, rejected = _implicit_preference(fields, place)
    if chosen == rejected:
        _fail(place, "rejected", "must differ from 'chosen'", "the same text", fix="remove the record")
    return Preference(prompt, chosen, rejected, _margin(fields, place), _probability(fields, place))


def parse_ranking(fields: Fields, place: str) -> Ranking:
    """A ranking from {prompt, responses, ranks} (lower is better) or {prompt, responses, scores} (higher is better)."""
    several = _name_of(fields, RANKED_FIELDS)
    responses = _list(fields, place, several, "a list of at least two responses")
    if len(responses) < 2:
        _fail(place, several, "must hold at least two responses", f"{len(responses)}")
    named = {f"{several}[{index}]": response for index, response in enumerate(responses)}
    prompt, texts = _prompt_and_responses(fields, place, named)
    if _present(fields, "ranks") and _present(fields, "scores"):
        _fail(place, "scores", "must be absent where 'ranks' is given", "both", fix="keep one of the two")
    if _present(fields, "scores"):
        ranks = _ranks_of_scores(_list(fields, place, "scores", "a list of numbers"), place)
        name = "scores"
    else:
        ranks = _list(fields, place, "ranks", "a list of integers, one a response, the lower the better")
        name = "ranks"
        for index, rank in enumerate(ranks):
            if not isinstance(rank, int) or isinstance(rank, bool):
                _fail(place, f"ranks[{index}]", "must be an integer", _shown(rank))
    if len(ranks) != len(texts):
        _fail(place, name, f"must have one entry for each of the {len(texts)} responses", f"{len(ranks)} entries")
    return Ranking(prompt, tuple(texts), tuple(ranks))


def parse_comparison(fields: Fields, place: str, expected: Literal["preference", "ranking"]) -> Preference | Ranking:
    """A preference or a ranking, distinguished by their fields; `expected` is what a row with neither is checked as.

    Files that `Comparisons.save` wrote may hold both.
    """
    if expected == "ranking":
        parser = parse_preference if _present(fields, "chosen") else parse_ranking
    else:
        parser = parse_ranking if _present(fields, _name_of(fields, RANKED_FIELDS)) else parse_preference
    return parser(fields, place)


def to_fields(record: Record) -> dict[str, Any]:
    """The record as fields that its parser reads back to an equal record."""
    if isinstance(record, Prompt):
        return {"prompt": _spelled(record)}
    fields: dict[str, Any] = {"prompt": _spelled(record.prompt)}
    if isinstance(record, Demonstration):
        return {**fields, "response": record.response}
    if isinstance(record, Ranking):
        return {**fields, "responses": list(record.responses), "ranks": list(record.ranks)}
    fields |= {"chosen": record.chosen, "rejected": record.rejected}
    optional = {"margin": record.margin, "probability": record.probability}
    return fields | {name: value for name, value in optional.items() if value is not None}


def _spelled(prompt: Prompt) -> str | list[dict[str, str]]:
    if isinstance(prompt.text, str):
        return prompt.text
    return [{"role": message.role, "content": message.content} for message in prompt.text]


def _prompt_and_responses(fields: Fields, place: str, responses: Mapping[str, object]) -> tuple[Prompt, list[str]]:
    """The explicit prompt and the responses, which are given by the names of their fields.

    A response given as messages makes a plain prompt the user turn of a conversation. Such a response is the one
    assistant turn, or the whole conversation, which then must begin with the prompt.
    """
    if not _present(fields, "prompt"):
        _missing(fields, place, "prompt", "a string or a list of {role, content}")
    for name, value in responses.items():
        if value is None:
            _missing(fields, place, name, "a string or a list with the one assistant turn")
    prompt = _prompt(fields["prompt"], place, "prompt")
    if all(isinstance(value, str) for value in responses.values()):
        return prompt, [_text(value, place, name) for name, value in responses.items()]
    conversation = (Message("user", prompt.text),) if isinstance(prompt.text, str) else prompt.text
    return Prompt(conversation), [_response(value, place, name, conversation) for name, value in responses.items()]


def _response(value: object, place: str, name: str, conversation: Conversation) -> str:
    if isinstance(value, str):
        return _text(value, place, name)
    turns = _turns(value, place, name)
    if turns[: len(conversation)] == conversation:
        turns = turns[len(conversation) :]
    if len(turns) != 1 or turns[0].role != "assistant":
        _fail(
            place,
            name,
            "must be one assistant turn, or the prompt's turns followed by one assistant turn",
            _roles(turns),
            fix="leave 'prompt' out where the responses are whole conversations",
        )
    return turns[0].content


def _implicit_preference(fields: Fields, place: str) -> tuple[Prompt, str, str]:
    """The prompt is what the two conversations share; each goes on with the one turn that was compared."""
    for name in ("chosen", "rejected"):
        if isinstance(fields[name], str):
            _missing(fields, place, "prompt", "a string or a list of {role, content}, because the responses are text")
    chosen, rejected = (_turns(fields[name], place, name) for name in ("chosen", "rejected"))
    if chosen == rejected:
        _fail(place, "rejected", "must differ from 'chosen'", "the same conversation", fix="remove the record")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    for name, turns in (("chosen", chosen), ("rejected", rejected)):
        rest = turns[shared:]
        if len(rest) != 1 or rest[0].role != "assistant":
            _fail(
                place,
                name,
                f"must be the {shared} turns that both conversations share and one assistant turn",
                f"{_roles(rest)} after them",
                fix="compare two responses to the same prompt, or give the prompt in its own field",
            )
    return _prompt(chosen[:shared], place, "chosen"), chosen[-1].content, rejected[-1].content


def _prompt(value: object, place: str, field: str) -> Prompt:
    if isinstance(value, str):
        text = _text(value, place, field)
        if not text.strip():
            _fail(place, field, "must not be empty", "no text")
        return Prompt(text)
    turns = _turns(value, place, field)
    if not turns or turns[-1].role != "user":
        _fail(place, field, "must end with a user turn, which the response answers", _roles(turns))
    if not any(turn.content.strip() for turn in turns):
        _fail(place, field, "must not be empty", "no text")
    return Prompt(turns)


def _turns(value: object, place: str, field: str) -> Conversation:
    if isinstance(value, tuple):
        return value
    if not isinstance(value, list):
        _fail(place, field, "must be a string or a list of {role, content}", _shown(value))
    turns = []
    for index, turn in enumerate(value):
        name = f"{field}[{index}]"
        if not isinstance(turn, Mapping):
            _fail(place, name, "must be an object {role, content}", _shown(turn))
        role = turn.get("role")
        if role not in ROLES:
            _fail(place, f"{name}.role", f"must be one of {', '.join(ROLES)}", _shown(role))
        turns.append(Message(role, _text(turn.get("content"), place, f"{name}.content")))
    return tuple(turns)


def _text(value: object, place: str, field: str) -> str:
    if not isinstance(value, str):
        _fail(place, field, "must be a string", _shown(value))
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _fail(place, field, "must be text", "half of a surrogate pair", fix="write the character as UTF-8")
    return value


def _margin(fields: Fields, place: str) -> float | None:
    margin = fields.get("margin")
    if margin is None:
        return None
    if not isinstance(margin, int | float) or isinstance(margin, bool):
        _fail(place, "margin", "must be a number", _shown(margin))
    if not math.isfinite(margin) or margin < 0:
        _fail(place, "margin", "must be finite and not negative", _shown(margin))
    return float(margin)


def _probability(fields: Fields, place: str) -> float | None:
    probability = fields.get("probability")
    if probability is None:
        return None
    if not isinstance(probability, int | float) or isinstance(probability, bool):
        _fail(place, "probability", "must be a number", _shown(probability))
    if not 0.5 <= probability <= 1.0:
        fix = "name the likelier response 'chosen'"
        _fail(place, "probability", "must be at least 0.5 and at most 1", _shown(probability), fix=fix)
    return float(probability)


def _ranks_of_scores(scores: Sequence[object], place: str) -> list[int]:
    """Dense ranks: the highest score has rank 1, equal scores share a rank, and no rank is left out."""
    numbers: list[float] = []
    for index, score in enumerate(scores):
        if not isinstance(score, int | float) or isinstance(score, bool) or not math.isfinite(score):
            _fail(place, f"scores[{index}]", "must be a finite number", _shown(score))
        numbers.append(score)
    levels = sorted(set(numbers), reverse=True)
    return [levels.index(number) + 1 for number in numbers]


def _list(fields: Fields, place: str, field: str, expected: str) -> list[Any]:
    value = fields.get(field)
    if value is None:
        _missing(fields, place, field, expected)
    if not isinstance(value, list):
        _fail(place, field, f"must be {expected}", _shown(value))
    return value


def _name_of(fields: Fields, names: Sequence[str]) -> str:
    """The first of some names of the same field that is there; the first name if none is."""
    return next((name for name in names if _present(fields, name)), names[0])


def _present(fields: Fields, name: str) -> bool:
    return fields.get(name) is not None


def _missing(fields: Fields, place: str, field: str, expected: str) -> NoReturn:
    given = [str(name) for name in fields if fields[name] is not None]
    found = f"the fields {', '.join(given)}" if given else "no fields"
    _fail(place, field, f"must be given: {expected}", found, fix="add the field, or rename the one that holds it")


def _fail(place: str, field: str, expected: str, got: str, *, fix: str = "correct the record") -> NoReturn:
    raise DataError(
        f"'{field}' {expected}; got {got}.",
        where=f"{place}, field '{field}'",
        fix=f"{fix}; or set data.on_bad_record=skip to leave such records out and count them",
    )


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def _roles(turns: Conversation) -> str:
    return f"the turns {', '.join(turn.role for turn in turns)}" if turns else "no turns"


TURN = re.compile(r"\n\n(Human|Assistant):")
ROLE_OF_SPEAKER: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def parse_hh_rlhf(fields: Fields, place: str, better: str = "chosen", worse: str = "rejected") -> Preference:
    """A preference from {chosen, rejected}, each a whole transcript.

    Args:
        better: the name of the field with the preferred transcript.
        worse: the name of the other one.

    Raises:
        DataError: a field is missing or is no transcript, or the transcripts differ in more than the last response.
    """
    chosen, rejected = (parse_transcript(fields.get(name), place, name) for name in (better, worse))
    if chosen == rejected:
        _fail_transcript(place, worse, f"is the same transcript as '{better}'")
    for name, turns in ((better, chosen), (worse, rejected)):
        if turns[-1].role != "assistant":
            _fail_transcript(place, name, "does not end with an Assistant turn, the response that was compared")
        if len(turns) < 2:
            _fail_transcript(place, name, "has no Human turn before the response")
    if chosen[:-1] != rejected[:-1]:
        _fail_transcript(
            place, worse, f"differs from '{better}' before the last Assistant turn, so their prompts are not equal"
        )
    if not any(turn.content for turn in chosen[:-1]):
        _fail_transcript(place, better, "has no text before the response")
    return Preference(Prompt(chosen[:-1]), chosen[-1].content, rejected[-1].content)


def parse_transcript(text: object, place: str, field: str) -> Conversation:
    r"""The turns of "\n\nHuman: ...\n\nAssistant: ...", white space around each turn removed.

    Raises:
        DataError: the value is no text, or does not begin with a turn.
    """
    if not isinstance(text, str):
        found = "is missing" if text is None else f"must be a string; got {type(text).__name__}"
        _fail_transcript(place, field, found)
    opening, *parts = TURN.split("\n\n" + text.lstrip())
    if opening.strip() or not parts:
        _fail_transcript(place, field, f'does not begin with "Human:" or "Assistant:"; got {text[:40]!r}')
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(
        Message(ROLE_OF_SPEAKER[speaker], "\n\n".join(said.strip() for _, said in spoken).strip())
        for speaker, spoken in groupby(turns, key=lambda turn: turn[0])
    )


def _fail_transcript(place: str, field: str, what: str) -> NoReturn:
    raise DataError(
        f"'{field}' {what}.",
        where=f"{place}, field '{field}'",
        fix='write each transcript as "\\n\\nHuman: ...\\n\\nAssistant: ...", or set data.on_bad_record=skip to leave '
        "such records out and count them",
    )
