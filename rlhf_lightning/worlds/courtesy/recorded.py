"""Judgments of the courtesy world's people on pairs of responses, recorded once: what a judge is calibrated against.

`calibration.jsonl` ships with the package, as a small set of human labels would with a real project, and is only read:
nothing here scores a response. `rlhf_lightning.worlds.courtesy.calibration` wrote it. A line is

    {"prompt": "...", "responses": [{"text": "...", "traits": ["harmless", ...]}, {...}], "prefers_first": true}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lightning.records import Message, Prompt

TRAIT_NAMES = ("harmless", "helpful", "honest", "polite", "brief", "forthcoming", "refusing", "verbose")
"""The traits that people said of each response whether it has them: those of `worlds.courtesy.TRAITS`."""
ROUNDING = 1e-9
"""Weighted sums that differ by less than this share of the weights tie."""


@dataclass(frozen=True, slots=True)
class RecordedJudgment:
    """Human judgment of two responses to a prompt.

    Attributes:
        prefers_first: whether an annotator, asked which response is better on the whole, preferred the first one.
        traits: by name, whether each response has it; a malformed response has none.
    """

    prompt: Prompt
    responses: tuple[str, str]
    prefers_first: bool
    traits: Mapping[str, tuple[bool, bool]]


def recorded_path() -> Path:
    """The file of recorded judgments."""
    return Path(__file__).parent / "calibration.jsonl"


def recorded_judgments() -> list[RecordedJudgment]:
    """The recorded judgments, in the file's order, of which any prefix is a fair sample."""
    lines = recorded_path().read_text(encoding="utf-8").splitlines()
    return [_from_fields(json.loads(line)) for line in lines]


def write_judgments(judgments: Iterable[RecordedJudgment], path: Path) -> None:
    """Writes the judgments as `recorded_judgments` reads them."""
    lines = [json.dumps(_to_fields(judgment)) for judgment in judgments]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def preferred_under(judgment: RecordedJudgment, weights: Mapping[str, float]) -> bool | None:
    """True if the first response is preferred under a weighting of traits.

    Args:
        weights: how much each trait counts; a negative weight asks for its absence.

    Returns:
        The sign of the weighted sum of what the first response has and the second lacks; None for a tie.

    Raises:
        KeyError: there is no such trait.
    """
    has = {name: judgment.traits[name] for name in weights}
    difference = sum(weight * (has[name][0] - has[name][1]) for name, weight in weights.items())
    # 0.1 + 0.2 - 0.3 is a tie, though not to floats.
    if abs(difference) <= ROUNDING * sum(map(abs, weights.values())):
        return None
    return difference > 0


def _to_fields(judgment: RecordedJudgment) -> dict[str, Any]:
    responses = [
        {"text": text, "traits": [name for name in TRAIT_NAMES if judgment.traits[name][side]]}
        for side, text in enumerate(judgment.responses)
    ]
    return {"prompt": judgment.prompt.last_turn, "responses": responses, "prefers_first": judgment.prefers_first}


def _from_fields(fields: Mapping[str, Any]) -> RecordedJudgment:
    first, second = fields["responses"]
    return RecordedJudgment(
        prompt=Prompt((Message("user", fields["prompt"]),)),
        responses=(first["text"], second["text"]),
        prefers_first=fields["prefers_first"],
        traits={name: (name in first["traits"], name in second["traits"]) for name in TRAIT_NAMES},
    )
