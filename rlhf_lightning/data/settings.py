"""Sources of prompts, demonstrations and comparisons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.sections import Count, Name, Section
from rlhf_lightning.worlds.settings import AnnotatorSettings, DemonstratorSettings


class Records(Section):
    """Fields of any data: limits on the length of a record, in tokens, the handling of longer ones (counted either
    way), and how a ranking becomes pairs."""

    max_prompt_length: Count
    max_response_length: Count
    on_long_record: Literal["truncate", "drop"]
    pairing: Literal["all", "adjacent", "best_versus_rest"]


class CourtesyData(Records):
    kind: Literal["courtesy"]
    demonstrations: Count
    annotator: AnnotatorSettings
    demonstrator: DemonstratorSettings


class RecordedData(Records):
    """Fields of recorded data in any format."""

    on_bad_record: Literal["error", "skip"]
    held_out_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    max_records: Count | None


class HHRlhfData(RecordedData):
    kind: Literal["hh_rlhf"]
    path: Name


class FileData(RecordedData):
    """Files in jsonl, jsonl.gz or parquet, one per record kind; null ones are derived where possible."""

    kind: Literal["files"]
    demonstrations: Name | None
    preferences: Name | None
    rankings: Name | None
    prompts: Name | None


class HubData(RecordedData):
    """A dataset of the hub (or a local directory that `datasets.load_dataset` opens)."""

    kind: Literal["hub"]
    name: Name
    config: Name | None
    split: Name
    record: Literal["preference", "ranking", "demonstration", "prompt"]


DataSettings = Annotated[CourtesyData | HHRlhfData | FileData | HubData, Field(discriminator="kind")]
