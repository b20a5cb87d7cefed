"""Comparisons that people have made, read from files to hold a judge against them.

A row is told by its fields: {correct, incorrect} or {chosen, rejected} as transcripts in HH-RLHF's form, or a
preference or a ranking as `data.formats` spells them. Chosen and rejected texts are transcripts where the row has no
prompt of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlhf_lightning.data.comparisons import Comparison, as_preferences
from rlhf_lightning.data.formats import parse_comparison
from rlhf_lightning.data.hh_rlhf import parse_hh_rlhf
from rlhf_lightning.data.reading import ReadReport, read_records
from rlhf_lightning.data.rows import Fields, read_rows
from rlhf_lightning.records import Preference

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
