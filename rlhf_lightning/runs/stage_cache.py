"""A run's access to the stage cache: take entries, lock those that have to be built, add finished stages."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning.evaluation.summary import SAMPLES_FILE, SampleRow, write_samples
from rlhf_lightning.runs.cache_store import Entry, Record, Store, origin
from rlhf_lightning.runs.identity import StageKeys
from rlhf_lightning.runs.input_identity import ADAPTER, BASE
from rlhf_lightning.stages.restore import start_over
from rlhf_lightning.stages.run_directory import RunDirectory, writing_to
from rlhf_lightning.stages.settings import CacheSettings
from rlhf_lightning.tracking.history_file import add_lines, lines_of_stage

logger = logging.getLogger(__name__)

KEYS = "keys.json"
"""In a run directory: the key under which each stage was begun."""


@dataclass(frozen=True, slots=True)
class CachedResult:
    """Results of a stage beside its files.

    Attributes:
        seconds: its duration.
        metrics: its entry in metrics.json.
        evaluation: what it adds to `evaluate` there.
    """

    seconds: float
    metrics: Mapping[str, Any]
    objective: float | None
    evaluation: Mapping[str, Any]
    samples: list[SampleRow]


class StageCache:
    """The stage cache as one run may use it.

    Args:
        settings: of the run; its `cache` section says what is allowed.
        run: the run.
        keys: of its stages.
    """

    def __init__(self, settings: CacheSettings, run: RunDirectory, keys: StageKeys) -> None:
        self.store = Store(Path(settings.directory))
        self.mode = settings.mode
        self.run = run
        self.keys = keys

    @contextmanager
    def turn(self, stage: str, while_waiting: Callable[[], None]) -> Iterator[Entry | None]:
        """The cached entry of a stage; None if it has to be run, with its key locked within the `with` block.

        Args:
            while_waiting: called regularly while another process builds the entry.
        """
        key = self.keys.of(stage)
        with ExitStack() as stack:
            if self._writes:
                try:
                    stack.enter_context(self.store.held(stage, key, self.run.path, while_waiting))
                except OSError as error:
                    logger.warning("The cache cannot be written (%s): this run leaves nothing there.", error)
                    self.mode = "read_only" if self.mode == "on" else "off"
            reads = self.mode in ("on", "read_only")
            yield self.store.sound(stage, key, repair=self._writes) if reads else None

    def begins(self, stage: str, goes_on: bool) -> None:
        """Records the key under which a stage starts.

        A stage that resumes, but was started under another key (by other code, or with other callbacks), matches
        neither of the two: it gets a key of its own, and is not put into the cache.

        Args:
            goes_on: the stage resumes from a checkpoint.
        """
        path = self.run.path / KEYS
        begun: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        key = self.keys.of(stage)
        if goes_on and begun.get(stage) != key:
            self.keys.remember_mixture(stage, begun.get(stage))
            key = self.keys.of(stage)
        self.run.write_json(KEYS, {**begun, stage: key})

    def keep(self, stage: str, made: CachedResult) -> None:
        """Adds a finished stage to the cache. A failed write to disk is logged, not raised."""
        if not self._writes or self.keys.is_mixture(stage):
            return
        record = Record(
            stage=stage,
            key=self.keys.of(stage),
            made=datetime.now(UTC).isoformat(timespec="seconds"),
            made_by=str(self.run.path.resolve()),
            seconds=round(made.seconds, 2),
            identity=asdict(self.keys.identity(stage)),
            metrics=dict(made.metrics),
            objective=made.objective,
            evaluation=dict(made.evaluation),
            samples=[asdict(row) for row in made.samples],
            history=lines_of_stage(self.run.path, stage),
            files={},
        )
        try:
            self.store.publish(record, self.run.stage_dir(stage))
        except OSError as error:
            logger.warning("Stage %s could not be put into the cache: %s.", stage, error)

    def take(self, entry: Entry) -> CachedResult:
        """Copies an entry into the run directory, as if the stage had been run there."""
        record, run = entry.record, self.run
        directory = run.stage_dir(record.stage)
        start_over(run, record.stage)
        with writing_to(run.path):
            entry.copy_into(directory)
            _put_on_base_of(run, directory / ADAPTER, record)
            add_lines(run.path, record.history)
        samples = [SampleRow(**row) for row in record.samples]
        if samples:
            write_samples(samples, run.path / SAMPLES_FILE)
        if self._writes:
            entry.mark_used()
        logger.info(
            "Stage %s: taken from the cache (made %s by %s, took %.0f s).",
            record.stage,
            record.made,
            record.made_by,
            record.seconds,
        )
        metrics = {**record.metrics, "cache": origin(record)}
        return CachedResult(record.seconds, metrics, record.objective, record.evaluation, samples)

    @property
    def _writes(self) -> bool:
        return self.mode in ("on", "refresh")


def _put_on_base_of(run: RunDirectory, config: Path, record: Record) -> None:
    """Points an adapter's config to this run's base, if it names the base made by the run that trained the adapter."""
    if not config.exists():
        return
    content = json.loads(config.read_text(encoding="utf-8"))
    if content.get("base_model_name_or_path") == str(Path(record.made_by) / BASE):
        content["base_model_name_or_path"] = str(run.path.resolve() / BASE)
        config.unlink()  # it may be a hard link to the cache's file
        config.write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
