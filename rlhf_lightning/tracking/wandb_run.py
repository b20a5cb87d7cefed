"""One W&B run for one stage: named, grouped, always finished, and never in the way of the training.

Weights & Biases is a witness, not a part of the experiment. Without an API key, or when the server does not answer,
the run is logged offline (`wandb sync` uploads it later); when even that fails, the files of the run directory remain.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import wandb

from rlhf_lightning.tracking.history import EPISODES
from rlhf_lightning.tracking.redaction import redact
from rlhf_lightning.tracking.wandb_session import (
    environment_restored,
    has_credentials,
    mode_from_environment,
    server_url,
)

log = logging.getLogger(__name__)

Mode = Literal["online", "offline"]

INIT_SECONDS = 20.0
"""How long the server may take to answer before the run goes offline."""
FINISH_SECONDS = 120.0
"""How long the upload may take at the end; what is left then can still be sent with `wandb sync`."""
GLOBAL_STEP = "trainer/global_step"
FAILURES = (wandb.errors.Error, OSError, TimeoutError)

_unreachable_servers: set[str] = set()
"""Servers that did not answer this process: its later stages do not wait for them again."""


@dataclass(frozen=True, slots=True)
class RunCard:
    """What a W&B run is called and filed under."""

    project: str
    entity: str | None
    group: str
    job_type: str
    name: str
    tags: Sequence[str]
    notes: str | None
    config: Mapping[str, Any]


class WandbRun:
    """A context in which a W&B run is open.

    On entry the run's id is written to `<run_dir>/wandb/<stage>.json`; where that file is there already, the run it
    names is continued. On exit the run is finished with exit code 0, or 1 after an exception.
    """

    def __init__(self, card: RunCard, run_dir: Path, mode: Literal["auto", "online", "offline"]) -> None:
        self.card = card
        self.run_dir = run_dir
        self.mode = mode
        self.run: wandb.Run | None = None
        """The open run; None before entry, after exit, and when W&B could not be started at all."""

    def __enter__(self) -> WandbRun:
        with environment_restored():
            try:
                self.run = self._open()
            except FAILURES as error:
                log.warning("W&B could not be started (%s); this run is logged to files only.", _first_line(error))
        if self.run is not None:
            self._attempt(self._declare_axes)
            self._write_identity(self.run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.run is None:
            return
        try:
            self.run.finish(exit_code=0 if kind is None else 1)
        except FAILURES as failure:
            log.warning("W&B could not finish its run (%s); `wandb sync` may still upload it.", _first_line(failure))
        finally:
            self.run = None

    def log(self, figures: Mapping[str, Any]) -> None:
        """Log one row of history: numbers, tables or images."""
        self._attempt(lambda run: run.log(dict(figures)))

    def summarise(self, figures: Mapping[str, Any]) -> None:
        """Set summary figures."""
        self._attempt(lambda run: run.summary.update(dict(figures)))

    def _attempt(self, action: Callable[[wandb.Run], object]) -> None:
        """Do something with the open run; a failing W&B is given up with one warning."""
        if self.run is None:
            return
        try:
            action(self.run)
        except FAILURES as error:
            log.warning("W&B failed (%s); from here on this stage is logged to files only.", _first_line(error))
            self._abandon(self.run)

    def _abandon(self, run: wandb.Run) -> None:
        self.run = None
        try:
            run.finish(exit_code=1)
        except FAILURES as error:
            log.debug("The failed W&B run could not be finished either: %s", error)

    def _open(self) -> wandb.Run:
        server = server_url()
        mode = self._resolved_mode()
        if mode == "online" and server not in _unreachable_servers:
            try:
                return self._init("online")
            except FAILURES as error:
                _unreachable_servers.add(server)
                log.warning(
                    "W&B at %s cannot be used (%s); logging offline to %s instead (upload later: wandb sync).",
                    server,
                    _first_line(error),
                    self.run_dir / "wandb",
                )
        return self._init("offline")

    def _resolved_mode(self) -> Mode:
        if self.mode != "auto":
            return self.mode
        told = mode_from_environment()
        if told is not None:
            return told
        if has_credentials():
            return "online"
        log.info(
            "No W&B API key: logging offline to %s (upload later: wandb login, then wandb sync).",
            self.run_dir / "wandb",
        )
        return "offline"

    def _init(self, mode: Mode) -> wandb.Run:
        card = self.card
        previous = self._previous_id()
        return wandb.init(
            mode=mode,
            project=card.project,
            entity=card.entity,
            group=card.group,
            job_type=card.job_type,
            name=card.name,
            tags=list(card.tags),
            notes=card.notes,
            config=redact(card.config),
            dir=str(self.run_dir),
            id=previous,
            resume="allow" if previous and mode == "online" else None,
            # Never the run of an earlier stage or of the user's own script.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                disable_code=True,
            ),
        )

    def _declare_axes(self, run: wandb.Run) -> None:
        axis = EPISODES if self.card.job_type == "ppo" else GLOBAL_STEP
        run.define_metric(axis)
        run.define_metric("*", step_metric=axis, step_sync=True)

    @property
    def _identity_path(self) -> Path:
        return self.run_dir / "wandb" / f"{self.card.job_type}.json"

    def _previous_id(self) -> str | None:
        if not self._identity_path.exists():
            return None
        identity: dict[str, str] = json.loads(self._identity_path.read_text(encoding="utf-8"))
        return identity["id"]

    def _write_identity(self, run: wandb.Run) -> None:
        identity = {
            "id": run.id,
            "name": run.name,
            "group": self.card.group,
            "project": self.card.project,
            "entity": run.entity or None,
            "mode": "offline" if run.offline else "online",
            "url": run.url,
            "directory": str(Path(run.dir).parent),
        }
        self._identity_path.parent.mkdir(parents=True, exist_ok=True)
        self._identity_path.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
