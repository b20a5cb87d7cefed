"""Comparisons: pairs from rankings, training and held-out data of a reward model, and pairs judged by people."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Literal

from rlhf_lightning.data.formats import parse_comparison, parse_hh_rlhf, to_fields
from rlhf_lightning.data.rows import Fields, ReadReport, read_records, read_rows
from rlhf_lightning.data.splits import split_by_prompt
from rlhf_lightning.records import Preference, Ranking

Pairing = Literal["all", "adjacent", "best_versus_rest"]


def ranking_to_preferences(ranking: Ranking, pairing: Pairing) -> list[Preference]:
    """The pairs that a ranking implies. Responses of equal rank, and equal responses, never make a pair.

    Responses are grouped into levels of equal rank, the best level first. Which pairs of levels meet is the pairing's
    choice; of two levels that meet, every response of the better one is preferred to every response of the worse one.

    Args:
        ranking: K responses and their ranks, the lower the better.
        pairing: `all`: every two levels meet, K(K-1)/2 pairs without ties (Ouyang et al. 2022, section 3.5).
            `adjacent`: neighboring levels meet, K-1 pairs without ties.
            `best_versus_rest`: the best level meets all others, K-1 pairs without ties.

    Returns:
        The pairs without a margin, better levels first; none where all responses tie.
    """
    by_rank: dict[int, list[str]] = {}
    for response, rank in zip(ranking.responses, ranking.ranks, strict=True):
        by_rank.setdefault(rank, []).append(response)
    levels = [by_rank[rank] for rank in sorted(by_rank)]
    return [
        Preference(ranking.prompt, better, worse)
        for better_level, worse_level in _meeting(levels, pairing)
        for better in better_level
        for worse in worse_level
        if better != worse
    ]


def _meeting(levels: list[list[str]], pairing: Pairing) -> Iterable[tuple[list[str], list[str]]]:
    match pairing:
        case "all":
            return combinations(levels, 2)
        case "adjacent":
            return pairwise(levels)
        case "best_versus_rest":
            return [(levels[0], level) for level in levels[1:]]


Comparison = Preference | Ranking


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Comparisons of responses, split so that no prompt stands on both sides.

    Attributes:
        train: what a reward model is fitted to.
        held_out: what its accuracy is measured on.
    """

    train: tuple[Comparison, ...]
    held_out: tuple[Comparison, ...]

    @classmethod
    def split(cls, comparisons: Iterable[Comparison], held_out_fraction: float) -> Comparisons:
        """The comparisons split by their prompts' hashes: the same prompts are held out wherever the fraction is."""
        train, held_out = split_by_prompt(comparisons, held_out_fraction)
        return cls(tuple(train), tuple(held_out))

    def preferences(self, pairing: Pairing) -> tuple[list[Preference], list[Preference]]:
        """Both sides as pairs, the rankings turned into pairs by `pairing`."""
        return as_preferences(self.train, pairing), as_preferences(self.held_out, pairing)

    def save(self, directory: str | Path) -> None:
        """Writes `train.jsonl` and `held_out.jsonl`, one comparison a line, which `data=files` reads too."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name, side in (("train", self.train), ("held_out", self.held_out)):
            lines = [json.dumps(to_fields(comparison), ensure_ascii=False) + "\n" for comparison in side]
            (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")

    @classmethod
    def load(cls, directory: str | Path) -> Comparisons:
        """Read the files that `save` wrote.

        Raises:
            DataError: a file is missing, or a line is no comparison.
        """
        train, held_out = (
            tuple(
                parse_comparison(row.fields(), row.place, "preference")
                for row in read_rows(Path(directory) / f"{name}.jsonl")
            )
            for name in ("train", "held_out")
        )
        return cls(train, held_out)


def as_preferences(comparisons: Iterable[Comparison], pairing: Pairing) -> list[Preference]:
    """The comparisons as pairs: preferences as they are, rankings by `pairing`."""
    return [
        preference
        for comparison in comparisons
        for preference in (
            ranking_to_preferences(comparison, pairing) if isinstance(comparison, Ranking) else [comparison]
        )
    ]


def trivial_baselines(preferences: Sequence[Preference]) -> dict[str, float]:
    """Accuracy of "the longer response" and "the shorter response", in characters; ties count one half.

    A reward model that is not better than these has learned nothing about the content of the responses.
    """
    wins = sum(
        1.0 if len(pair.chosen) > len(pair.rejected) else 0.5 if len(pair.chosen) == len(pair.rejected) else 0.0
        for pair in preferences
    )
    longer = wins / len(preferences) if preferences else float("nan")
    return {"longer": longer, "shorter": 1.0 - longer}


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Rules:
    on_bad_record: Literal["error", "skip"]
    max_records: None = None


def read_human_comparisons(path: str | Path, on_bad_record: Literal["error", "skip"] = "error") -> list[Preference]:
    """All comparisons of a file, or of a directory's files, in order; a ranking as all the pairs that it orders.

    Args:
        on_bad_record: whether a malformed row stops the run, or is left out and counted.

    Raises:
        DataError: nothing is there, or a row is malformed.
    """
    report = ReadReport()
    read = read_records(str(path), read_rows(path), parse_human_comparison, _Rules(on_bad_record), report)
    preferences = as_preferences(read, "all")
    prompts = len({preference.prompt for preference in preferences})
    logger.info(
        "%s: %d comparisons on %d prompts, %d malformed rows skipped", path, len(preferences), prompts, report.skipped
    )
    return preferences


def parse_human_comparison(fields: Fields, place: str) -> Comparison:
    """A comparison in any of the forms above.

    Raises:
        DataError: it has none of them.
    """
    if "correct" in fields or "incorrect" in fields:
        return parse_hh_rlhf(fields, place, better="correct", worse="incorrect")
    texts = all(isinstance(fields.get(name), str) for name in ("chosen", "rejected"))
    if texts and fields.get("prompt") is None:
        return parse_hh_rlhf(fields, place)
    return parse_comparison(fields, place, "preference")
