"""Training and held-out data of a reward model: preferences and rankings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lightning.data.formats import parse_comparison, to_fields
from rlhf_lightning.data.rankings import Pairing, ranking_to_preferences
from rlhf_lightning.data.rows import read_rows
from rlhf_lightning.data.splits import split_by_prompt
from rlhf_lightning.records import Preference, Ranking

Comparison = Preference | Ranking


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Comparisons of replies, split so that no prompt stands on both sides.

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
    """Accuracy of "the longer reply" and "the shorter reply", in characters; ties count one half.

    A reward model that is not better than these has learned nothing about the content of the replies.
    """
    wins = sum(
        1.0 if len(pair.chosen) > len(pair.rejected) else 0.5 if len(pair.chosen) == len(pair.rejected) else 0.0
        for pair in preferences
    )
    longer = wins / len(preferences) if preferences else float("nan")
    return {"longer": longer, "shorter": 1.0 - longer}
