"""One W&B run for one stage: named, grouped, always finished, and never in the way of the training.

Weights & Biases is a witness, not a part of the experiment. Without an API key, or when the server does not answer,
the run is logged offline (`wandb sync` uploads it later); when even that fails, the files of the run directory remain.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import wandb

from rlhf_lightning.tracking.forgiveness import Forgiven
from rlhf_lightning.tracking.history_file import EPISODES
from rlhf_lightning.tracking.redaction import redact
from rlhf_lightning.tracking.wandb_session import (
    environment_restored,
    has_credentials,
    offline_by_environment,
    server_url,
)

log = logging.getLogger(__name__)

Mode = Literal["online", "offline"]

INIT_SECONDS = 20.0
"""How long the server may take to answer before the run goes offline."""
FINISH_SECONDS = 120.0
"""How long the upload may take at the end; what is left then can still be sent with `wandb sync`."""
GLOBAL_STEP = "trainer/global_step"

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
    names is continued. On exit the run is finished with exit code 0, or 1 after an exception. A client that fails is
    given up with one warning, and the stage goes on without it.

    Attributes:
        run: the open run; None before entry, after exit, and once the client has failed.
    """

    def __init__(self, card: RunCard, run_dir: Path, mode: Literal["auto", "online", "offline"]) -> None:
        self.card = card
        self.run_dir = run_dir
        self.mode = mode
        self.run: wandb.Run | None = None

    def __enter__(self) -> WandbRun:
        start = Forgiven("W&B could not be started (%s); this stage is logged to files only.")
        with environment_restored(), start:
            self.run = self._open()
            self._write_identity(self.run)
            axis = EPISODES if self.card.job_type == "ppo" else GLOBAL_STEP
            self.run.define_metric(axis)
            self.run.define_metric("*", step_metric=axis, step_sync=True)
        self._give_up_after(start)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run, self.run = self.run, None
        if run is not None:
            with Forgiven("W&B could not finish its run (%s); `wandb sync` may still upload it."):
                run.finish(exit_code=0 if kind is None else 1)

    def log(self, figures: Mapping[str, Any]) -> None:
        """Log one row of history: numbers, tables or images."""
        if self.run is not None:
            with Forgiven("W&B failed (%s); from here on this stage is logged to files only.") as attempt:
                self.run.log(dict(figures))
            self._give_up_after(attempt)

    def summarise(self, figures: Mapping[str, Any]) -> None:
        """Set summary figures."""
        if self.run is not None:
            with Forgiven("W&B failed (%s); this stage's summary is in metrics.json only.") as attempt:
                self.run.summary.update(dict(figures))
            self._give_up_after(attempt)

    def _give_up_after(self, attempt: Forgiven) -> None:
        if attempt.failed:
            self.run = None

    def _open(self) -> wandb.Run:
        server = server_url()
        if self._resolved_mode() == "online" and server not in _unreachable_servers:
            with Forgiven(f"W&B at {server} cannot be used (%s); logging offline instead (upload later: wandb sync)."):
                return self._init("online")
            _unreachable_servers.add(server)
            # Its service still holds the id of the run that could not be opened.
            wandb.teardown(exit_code=1)
            server_url()
        return self._init("offline")

    def _resolved_mode(self) -> Mode:
        if self.mode != "auto":
            return self.mode
        if offline_by_environment():
            return "offline"
        if has_credentials():
            return "online"
        _log_once(f"No W&B API key: logging offline to {self.run_dir / 'wandb'} (later: wandb login, then wandb sync).")
        return "offline"

    def _init(self, mode: Mode) -> wandb.Run:
        card = self.card
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
            # An id of its own and `create_new`: never the run of an earlier stage, nor one that WANDB_RUN_ID names.
            id=self._previous_id() or secrets.token_hex(4),
            reinit="create_new",
            resume="allow" if mode == "online" else None,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                disable_code=True,
            ),
        )

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
        aside = self._identity_path.with_suffix(".json.part")
        aside.write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
        aside.replace(self._identity_path)


@cache
def _log_once(message: str) -> None:
    """Log what every stage of a run would say again."""
    log.info(message)
