"""Prompts for feedback, filtered by kind, from the data or from a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.constitutions.drawing import applicable
from rlhf_lightning.data.formats import parse_prompt
from rlhf_lightning.data.rows import read_rows
from rlhf_lightning.data.sources import DataSource
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Prompt
from rlhf_lightning.settings.constitution import Principle


def prompts_to_use(data: DataSource, path: str | None, *, last_turn_only: bool = False) -> list[Prompt]:
    """The data's training prompts, or those of a file, without duplicates.

    Args:
        last_turn_only: keep only the last turn of a conversation.

    Raises:
        DataError: a line of the file is no prompt, or it has none.
    """
    if path is None:
        prompts = data.prompts()
    else:
        prompts = [parse_prompt(row.fields(), row.place) for row in read_rows(Path(path))]
    if last_turn_only:
        prompts = [prompt if isinstance(prompt.text, str) else Prompt(prompt.text[-1:]) for prompt in prompts]
    if not prompts:
        raise DataError("There are no prompts.", where=path or "data", fix="give a file with at least one")
    return list(dict.fromkeys(prompts))


def of_kinds(
    prompts: Sequence[Prompt], data: DataSource, kinds: Sequence[str] | None, principles: Sequence[Principle], key: str
) -> list[tuple[Prompt, str | None]]:
    """The prompts of some kinds, each with its kind; a prompt of unknown kind matches any.

    Args:
        kinds: None: every kind that some principle applies to (all, if there is no principle).
        key: the config key that chose the kinds, for the error.

    Raises:
        DataError: none is left.
    """
    known = [(prompt, data.kind_of(prompt)) for prompt in prompts]
    if kinds is not None:
        left = [(prompt, kind) for prompt, kind in known if kind is None or kind in kinds]
    else:
        left = [(prompt, kind) for prompt, kind in known if not principles or applicable(principles, kind)]
    if left:
        return left
    counted = Counter(kind for _, kind in known)
    there = ", ".join(f"{count} {kind}" for kind, count in sorted(counted.items()))
    wanted = f"of the kinds {', '.join(kinds)}" if kinds is not None else "one that a principle applies to"
    raise DataError(
        f"All prompts are filtered out: none is {wanted}, and there are {there}.",
        where=key if kinds is not None else f"{key}=null, constitution.principles",
        fix=f"choose kinds that are there with {key}=[...], or let the principles apply to more (applies_to: null)",
    )
