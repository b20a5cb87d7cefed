"""Sources of a run's prompts, demonstrations and comparisons, and demonstrations that a stage left for another."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Protocol, TypeVar

from rlhf_lightning.data.comparisons import Comparison, Comparisons
from rlhf_lightning.data.formats import (
    Record,
    parse_comparison,
    parse_demonstration,
    parse_hh_rlhf,
    parse_preference,
    parse_prompt,
    parse_ranking,
    to_fields,
)
from rlhf_lightning.data.rows import Fields, ReadReport, read_records, read_rows
from rlhf_lightning.data.settings import CourtesyData, DataSettings, FileData, HHRlhfData, HubData
from rlhf_lightning.data.splits import is_held_out, split_by_prompt
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Demonstration, Prompt, Ranking
from rlhf_lightning.worlds import courtesy

Side = TypeVar("Side")
Parsed = TypeVar("Parsed")


class DataSource(Protocol):
    """Text-level records for the stages of a pipeline."""

    def demonstrations(self) -> list[Demonstration]:
        """Responses to imitate, to training prompts.

        Raises:
            DataError: there are none and none can be derived.
        """

    def prompts(self) -> list[Prompt]:
        """Training prompts for rollouts, each once, in a fixed order."""

    def evaluation_prompts(self) -> dict[str, list[Prompt]]:
        """Prompts that nothing is trained on, by the name of their split."""

    def kind_of(self, prompt: Prompt) -> str | None:
        """The kind of a prompt (harm, a fact, ...); None if the data does not record it."""

    def comparisons(self) -> Comparisons | None:
        """The recorded comparisons, or None where there are none and a stage has to gather them."""

    def report(self) -> ReadReport:
        """Counts of the records read and skipped."""

    def texts(self) -> Iterable[str]:
        """All training text, for a tokenizer to be trained on; none of it is held out."""


def open_source(settings: DataSettings, seed: int) -> DataSource:
    """Reads what the settings name.

    Args:
        settings: the data section of a config.
        seed: what the courtesy world's demonstrations are drawn from. Recorded data does not depend on it, so that
            runs with different seeds have the same held-out prompts.

    Raises:
        DataError: the data is missing, empty, or malformed.
    """
    match settings:
        case CourtesyData():
            return CourtesySource(settings, seed)
        case HHRlhfData():
            return _read_hh_rlhf(settings)
        case FileData():
            return _read_files(settings)
        case HubData():
            return _read_hub(settings)


class CourtesySource:
    """The embedded world: its demonstrators speak, its annotators rank what the policy says in a stage of its own."""

    def __init__(self, settings: CourtesyData, seed: int) -> None:
        self._demonstrations = courtesy.demonstrations(settings, Random(seed))

    def demonstrations(self) -> list[Demonstration]:
        return self._demonstrations

    def prompts(self) -> list[Prompt]:
        return courtesy.prompts("train")

    def evaluation_prompts(self) -> dict[str, list[Prompt]]:
        return {split: courtesy.prompts(split) for split in courtesy.SPLITS if split != "train"}

    def kind_of(self, prompt: Prompt) -> str:
        return courtesy.parse_prompt(prompt.last_turn).kind

    def comparisons(self) -> None:
        return None

    def report(self) -> ReadReport:
        return ReadReport(read=len(self._demonstrations))

    def texts(self) -> Iterator[str]:
        for demonstration in self._demonstrations:
            yield from _record_texts(demonstration)


@dataclass(slots=True)
class RecordedSource:
    """Records that were read from somewhere, split by a hash of their prompts.

    Attributes:
        held_out_fraction: the expected share of the prompts that is held out.
        given_demonstrations: responses to imitate; where there are none, they are derived from the comparisons.
        given_comparisons: preferences and rankings.
        given_prompts: prompts for rollouts and evaluation; where there are none, those of the other records are.
        read_report: what was read.
    """

    held_out_fraction: float
    given_demonstrations: list[Demonstration] = field(default_factory=list)
    given_comparisons: list[Comparison] = field(default_factory=list)
    given_prompts: list[Prompt] = field(default_factory=list)
    read_report: ReadReport = field(default_factory=ReadReport)

    def demonstrations(self) -> list[Demonstration]:
        """The given ones, or the chosen and the best-ranked responses, each once."""
        records = self.given_demonstrations or list(dict.fromkeys(map(_best_response, self.given_comparisons)))
        if not records:
            raise DataError(
                "The data holds no demonstrations, and no comparisons to take them from.",
                where="data",
                fix="give data.demonstrations (or preferences, whose chosen responses are imitated)",
            )
        return self._non_empty(split_by_prompt(records, self.held_out_fraction)[0], "training demonstrations")

    def prompts(self) -> list[Prompt]:
        return self._non_empty([prompt for prompt in self._pool() if not self._held_out(prompt)], "training prompts")

    def evaluation_prompts(self) -> dict[str, list[Prompt]]:
        held_out = [prompt for prompt in self._pool() if self._held_out(prompt)]
        return {"held_out": self._non_empty(held_out, "held-out prompts")}

    def kind_of(self, _: Prompt) -> None:
        return None

    def comparisons(self) -> Comparisons | None:
        if not self.given_comparisons:
            return None
        comparisons = Comparisons.split(self.given_comparisons, self.held_out_fraction)
        self._non_empty(list(comparisons.train), "training comparisons")
        self._non_empty(list(comparisons.held_out), "held-out comparisons")
        return comparisons

    def report(self) -> ReadReport:
        return self.read_report

    def texts(self) -> Iterator[str]:
        for record in (*self.given_demonstrations, *self.given_comparisons, *self.given_prompts):
            if not self._held_out(record if isinstance(record, Prompt) else record.prompt):
                yield from _record_texts(record)

    def _held_out(self, prompt: Prompt) -> bool:
        return is_held_out(prompt, self.held_out_fraction)

    def _pool(self) -> list[Prompt]:
        """Every distinct prompt, in the order read."""
        records = (*self.given_demonstrations, *self.given_comparisons)
        return list(dict.fromkeys(self.given_prompts or (record.prompt for record in records)))

    def _non_empty(self, records: list[Side], name: str) -> list[Side]:
        if not records:
            raise DataError(
                f"Of the {self.read_report.read} records none fell to the {name}.",
                where=f"data.held_out_fraction={self.held_out_fraction}",
                fix="add records, or change the fraction",
            )
        return records


def _read_hh_rlhf(settings: HHRlhfData) -> RecordedSource:
    source = RecordedSource(settings.held_out_fraction)
    found = read_rows(settings.path)
    source.given_comparisons += read_records(settings.path, found, parse_hh_rlhf, settings, source.read_report)
    return source


def _read_files(settings: FileData) -> RecordedSource:
    source = RecordedSource(settings.held_out_fraction)

    def read(path: str | None, parse: Callable[[Fields, str], Parsed]) -> list[Parsed]:
        return [] if path is None else read_records(path, read_rows(path), parse, settings, source.read_report)

    source.given_demonstrations += read(settings.demonstrations, parse_demonstration)
    source.given_comparisons += read(settings.preferences, partial(parse_comparison, expected="preference"))
    source.given_comparisons += read(settings.rankings, partial(parse_comparison, expected="ranking"))
    source.given_prompts += read(settings.prompts, parse_prompt)
    if not source.read_report.read:
        raise DataError(
            "No data files are named.",
            where="data (kind: files)",
            fix="give at least one of data.demonstrations, data.preferences, data.rankings, data.prompts",
        )
    return source


def _read_hub(settings: HubData) -> RecordedSource:
    from rlhf_lightning.data.hub import hub_rows  # here, since `datasets` takes 80 MB, which other runs can do without

    source = RecordedSource(settings.held_out_fraction)

    def read(parse: Callable[[Fields, str], Parsed]) -> list[Parsed]:
        return read_records(settings.name, hub_rows(settings), parse, settings, source.read_report)

    match settings.record:
        case "demonstration":
            source.given_demonstrations += read(parse_demonstration)
        case "preference":
            source.given_comparisons += read(parse_preference)
        case "ranking":
            source.given_comparisons += read(parse_ranking)
        case "prompt":
            source.given_prompts += read(parse_prompt)
    return source


def _best_response(comparison: Comparison) -> Demonstration:
    """The chosen response, or the first of the best-ranked ones."""
    if isinstance(comparison, Ranking):
        best = comparison.ranks.index(min(comparison.ranks))
        return Demonstration(comparison.prompt, comparison.responses[best])
    return Demonstration(comparison.prompt, comparison.chosen)


def _record_texts(record: Record) -> Iterator[str]:
    """The prompt's turns and the responses."""
    prompt = record if isinstance(record, Prompt) else record.prompt
    if isinstance(prompt.text, str):
        yield prompt.text
    else:
        yield from (turn.content for turn in prompt.text)
    if isinstance(record, Demonstration):
        yield record.response
    elif isinstance(record, Ranking):
        yield from record.responses
    elif not isinstance(record, Prompt):
        yield from (record.chosen, record.rejected)


DEMONSTRATIONS = "demonstrations.jsonl"


def write_demonstrations(demonstrations: Iterable[Demonstration], directory: Path) -> None:
    """Writes `demonstrations.jsonl`, one a line, which `data=files` reads too."""
    lines = [json.dumps(to_fields(one), ensure_ascii=False) + "\n" for one in demonstrations]
    (directory / DEMONSTRATIONS).write_text("".join(lines), encoding="utf-8")


def read_demonstrations(directory: Path) -> list[Demonstration]:
    """Read the file that `write_demonstrations` wrote.

    Raises:
        DataError: the file is missing, or a line is no demonstration.
    """
    return [parse_demonstration(row.fields(), row.place) for row in read_rows(directory / DEMONSTRATIONS)]
