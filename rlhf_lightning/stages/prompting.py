"""Parts of the feedback stages: prompts filtered by kind, a model's encoder, and the wording of requests to it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlhf_lightning.constitutions.rendering import EnglishPhrasing, Phrasing, applicable
from rlhf_lightning.constitutions.settings import Principle
from rlhf_lightning.data.encoding import Encoder
from rlhf_lightning.data.formats import DEFAULT_CHAT_TEMPLATE, parse_prompt
from rlhf_lightning.data.rows import read_rows
from rlhf_lightning.data.settings import CourtesyData
from rlhf_lightning.data.sources import DataSource
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_tokenizer
from rlhf_lightning.records import Prompt
from rlhf_lightning.stages.context import StageContext
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.worlds.courtesy.phrasing import CourtesyPhrasing


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


def phrasing_for(settings: RunSettings, phrasing: str, fewshots: str, is_plain: bool) -> Phrasing:
    """English, or the courtesy world's own words.

    Args:
        phrasing: `english`, `world`; `auto`: the world's where the data is its.
        fewshots: `always`, `never`; `auto`: for a plain model.
        is_plain: the model has no chat template of its own.
    """
    speaks_world = isinstance(settings.data, CourtesyData) if phrasing == "auto" else phrasing == "world"
    with_examples = is_plain if fewshots == "auto" else fewshots == "always"
    return CourtesyPhrasing() if speaks_world else EnglishPhrasing(fewshots=with_examples)


def open_encoder(context: StageContext, source: ModelSource) -> tuple[Encoder, bool]:
    """A model's encoder, and True if the model has no chat template of its own.

    The flag is read before the encoder adds a template, which a stage saves with the model that it trains: a plain
    model stays plain after training.
    """
    tokenizer = load_tokenizer(source)
    is_plain = tokenizer.chat_template in (None, DEFAULT_CHAT_TEMPLATE)
    return Encoder(tokenizer, context.settings.data), is_plain
