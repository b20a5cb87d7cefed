"""What the stages of a run read while they run: keys of its config, and gold rewards."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from rlhf_lightning.runs.code_identity import NAME
from rlhf_lightning.sections import Section
from rlhf_lightning.stages.context import StageContext, StageResult
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.worlds.courtesy import gold

LOOKS_AWAY = (
    *("cli", "runs", "tracking", "comparison", "errors", "sections", "evaluation.plots", "evaluation.summary"),
    *("stages.monitoring", "stages.run_directory", "stages.restore", "stages.targets", "stages.settings"),
    *("stages.readers", "stages.run_settings", "algorithms.checkpoints"),
)
"""Modules whose reading does not decide what a stage leaves."""


Run = Callable[[StageContext], StageResult]


class Recorder:
    """Notes which keys of a config are read, by code that decides what a stage leaves."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.kept: list[Section] = []
        self.read: set[str] = set()

    def know(self, section: Section, prefix: str) -> None:
        """From now on what is read of this section, and of those in it, is noted under its dotted keys."""
        self.names[id(section)] = prefix
        self.kept.append(section)  # else another object could come to have its id
        for name in type(section).model_fields.keys() & section.__dict__.keys():
            value = object.__getattribute__(section, name)
            if isinstance(value, Section):
                self.know(value, f"{prefix}{name}.")

    def note(self, section: Section, name: str, module: str) -> None:
        inside = module.startswith(f"{NAME}.")
        looks_away = any(f"{module}.".startswith(f"{NAME}.{left_out}.") for left_out in LOOKS_AWAY)
        if id(section) in self.names and inside and not looks_away and name in type(section).model_fields:
            value = object.__getattribute__(section, name)
            if not isinstance(value, Section):
                self.read.add(f"{self.names[id(section)]}{name}")


@contextmanager
def recording() -> Iterator[Callable[[], dict[str, list[str]]]]:
    """Watches runs of this process; what it gives tells the keys that each stage has read."""
    by_stage: dict[str, Recorder] = defaultdict(Recorder)
    at_work: list[Recorder] = []
    get, copy = Section.__getattribute__, Section.model_copy

    def watched(section: Section, name: str) -> Any:
        if at_work and not name.startswith("_"):
            at_work[-1].note(section, name, sys._getframe(1).f_globals["__name__"])
        return get(section, name)

    def copied(section: Section, **changes: Any) -> Section:
        made = copy(section, **changes)
        if at_work and id(section) in at_work[-1].names:
            at_work[-1].know(made, at_work[-1].names[id(section)])
        return made

    @contextmanager
    def watching(context: StageContext) -> Iterator[None]:
        for settings in (context.settings, context.inputs.settings):
            by_stage[context.name].know(settings, "")
        at_work.append(by_stage[context.name])
        try:
            yield
        finally:
            at_work.pop()

    with around_stages(watching) as patch:
        patch.setattr(Section, "__getattribute__", watched)
        patch.setattr(Section, "model_copy", copied)
        yield lambda: {stage: sorted(recorder.read) for stage, recorder in by_stage.items()}


@contextmanager
def gold_scores() -> Iterator[Counter[str]]:
    """Counts how often the gold reward is computed in each stage of this process's runs."""
    scored: Counter[str] = Counter()
    running = ["no stage"]
    original = gold.GoldScore

    def noted(*arguments: Any, **named: Any) -> gold.GoldScore:
        scored[running[-1]] += 1
        return original(*arguments, **named)

    @contextmanager
    def announced(context: StageContext) -> Iterator[None]:
        running.append(context.name)
        try:
            yield
        finally:
            running.pop()

    with around_stages(announced) as patch:
        patch.setattr(gold, "GoldScore", noted)  # the only way to a score: `gold.score` and `gold.judge` make it
        yield scored


@contextmanager
def around_stages(entered: Callable[[StageContext], AbstractContextManager[None]]) -> Iterator[pytest.MonkeyPatch]:
    """Runs each stage of this process's runs within a context; gives what undoes further patches with this one."""

    def within(run_stage: Run) -> Run:
        def run(context: StageContext) -> StageResult:
            with entered(context):
                return run_stage(context)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for stage in STAGES.values():
            patch.setattr(stage, "run", within(stage.run))
        yield patch
