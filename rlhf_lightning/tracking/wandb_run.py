"""One W&B run per stage (named, grouped, always finished, never a reason for a training to fail), and logging to it."""

from __future__ import annotations

import json
import logging
import secrets
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import cache
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import wandb
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from rlhf_lightning.atomic import write_text
from rlhf_lightning.evaluation.metrics import LoggedMetrics
from rlhf_lightning.evaluation.summary import SampleRow
from rlhf_lightning.records import ScoredResponse
from rlhf_lightning.tracking.history_file import EPISODES, read_history
from rlhf_lightning.tracking.naming import Artifact, sweep_directory
from rlhf_lightning.tracking.redaction import redact
from rlhf_lightning.tracking.wandb_client import (
    GLOBAL_STEP,
    Content,
    SuppressWandbErrors,
    command_redacted,
    declare_metrics,
    environment_restored,
    has_credentials,
    offline_by_environment,
    server_url,
    staging_in,
    summaries,
    wandb_artifact,
)
from rlhf_lightning.tracking.wandb_files import AgentTrial, link_into_sweep, next_step

log = logging.getLogger(__name__)

Mode = Literal["online", "offline"]

INIT_SECONDS = 20.0
"""Timeout for the server's first answer, after which the run goes offline."""
FINISH_SECONDS = 120.0
"""Timeout for the upload at the end; the rest can still be sent with `wandb sync`."""

_unreachable_servers: set[str] = set()
"""Servers that did not answer this process; later stages do not wait for them again."""


@dataclass(frozen=True, slots=True)
class RunCard:
    """Name, group, tags and config of a W&B run.

    Attributes:
        config: nested, as the run's own. W&B shows and filters `{"kl": {"coef": 0.1}}` as `kl.coef`; a key that itself
            contains a dot can be shown but not filtered through its API (wandb/wandb issues 2819 and 3087).
        logged: metrics that the stage declares.
        trial: of a W&B sweep, if this run is one.
    """

    project: str
    entity: str | None
    group: str
    job_type: str
    name: str
    tags: Sequence[str]
    notes: str | None
    config: Mapping[str, Any]
    logged: LoggedMetrics
    trial: AgentTrial | None = None


class WandbRun:
    """A context in which a W&B run is open.

    On entry the run's id is written to `<run_dir>/wandb/<stage>.json`; if that file exists already, the run it names
    is resumed. On exit the run is finished with exit code 0, or 1 after an exception. After an error of the client,
    one warning is logged, and the stage continues without it.

    A history row has as its step in W&B the number of figures that the stage logged before it. A stage that resumes
    from a checkpoint logs the later rows again, under the same steps: rows that W&B has are not sent twice. Rows lost
    with a killed process are sent from the history file.

    Attributes:
        run: the open run; None before entry, after exit, and once the client has failed.
        figures: number of figures that the stage has logged.
    """

    def __init__(self, card: RunCard, run_dir: Path, mode: Literal["auto", "online", "offline"]) -> None:
        self.card = card
        self.run_dir = run_dir
        self.mode = mode
        self.run: wandb.Run | None = None
        self.figures = 0
        self._first_new_step = 0
        self._beside: Callable[[], Mapping[str, Any]] | None = None

    def __enter__(self) -> WandbRun:
        with ExitStack() as on_failure:
            on_failure.push(self)  # an open run is finished even if this method fails
            start = SuppressWandbErrors("W&B could not be started (%s); this stage is logged to files only.")
            with environment_restored(), command_redacted(), start:
                self.run = self._open()
                self._first_new_step = self._steps_sent(self.run)
                self._write_identity(self.run)
                declare_metrics(self.run, self.card.logged)
            self._give_up_after(start)
            self._show_in_sweep()
            self._catch_up()
            on_failure.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._finish(
            0 if kind is None else 1,
            SuppressWandbErrors("W&B could not finish its run (%s); `wandb sync` may still upload it."),
        )

    def log_row(self, figures: Mapping[str, float], optimizer_step: int | None) -> None:
        """Log the stage's next row of history, unless W&B has it from before the stage was interrupted."""
        due = self._beside if EPISODES in figures else None
        if self.figures >= self._first_new_step:
            row: dict[str, Any] = dict(figures)
            if optimizer_step is not None:
                row[GLOBAL_STEP] = optimizer_step
            self._log({**row, **(due() if due else {})}, step=self.figures)
        self._beside = None if due else self._beside
        self.figures += len(figures)

    def log_beside(self, media: Callable[[], Mapping[str, Any]]) -> None:
        """Log tables or images in the next row of history that has `rollout/episodes`.

        Args:
            media: makes them; not called if W&B has the row.
        """
        self._beside = media

    def log(self, figures: Mapping[str, Any]) -> None:
        """Log numbers, tables or images at the end of a stage, as a row of their own."""
        self._log(figures)

    def summarize(self, figures: Mapping[str, Any]) -> None:
        """Set summary figures, in addition to the declared minima, maxima and last values of logged metrics."""
        if self.run is not None:
            logged = summaries(read_history(self.run_dir), self.card.job_type, self.card.logged)
            with SuppressWandbErrors("W&B failed (%s); this stage's summary is in metrics.json only.") as attempt:
                self.run.summary.update({**logged, **figures})
            self._give_up_after(attempt)

    def leave(self, artifact: Artifact, content: Content) -> None:
        """Log the output artifact of the stage."""
        self._note(artifact, content, taken=False)

    def take(self, artifact: Artifact) -> None:
        """Log an input artifact of the stage, without uploading it."""
        self._note(artifact, "reference", taken=True)

    def _show_in_sweep(self) -> None:
        sweep = sweep_directory(self.run_dir)
        if self.run is not None and sweep is not None:
            with SuppressWandbErrors("`wandb leet` will not show this run beside the sweep's others (%s)."):
                link_into_sweep(Path(self.run.dir).parent, sweep)

    def _catch_up(self) -> None:
        """Log the rows of the stage's history from before the interruption that W&B lacks."""
        rows = [row for row in read_history(self.run_dir) if row.stage == self.card.job_type]
        for (step, _), together in groupby(rows, key=lambda row: (row.step, row.episodes)):
            self.log_row({row.name: row.value for row in together}, step)
        self.figures = len(rows)

    def _log(self, row: Mapping[str, Any], step: int | None = None) -> None:
        if self.run is not None:
            with (
                SuppressWandbErrors("W&B failed (%s); from here on this stage is logged to files only.") as attempt,
                staging_in(self._directory),
            ):
                # The run may be at a later step if a user's callback logs to it directly.
                self.run.log(dict(row), step=None if step is None else max(step, self.run.step), commit=True)
            self._give_up_after(attempt)

    def _note(self, artifact: Artifact, content: Content, taken: bool) -> None:
        if self.run is not None:
            with (
                SuppressWandbErrors("W&B did not take an artifact (%s); the lineage of this run is not whole."),
                staging_in(self._directory),
            ):
                # What `use_artifact` does with a new artifact, but that refuses to work offline, and waits for the
                # upload. An artifact of the same name and content that W&B knows is found again, and used.
                self.run._log_artifact(wandb_artifact(artifact, content), is_user_created=True, use_after_commit=taken)

    def _give_up_after(self, attempt: SuppressWandbErrors) -> None:
        if attempt.failed:
            self._finish(1, SuppressWandbErrors(None))

    def _finish(self, exit_code: int, attempt: SuppressWandbErrors) -> None:
        run, self.run = self.run, None
        if run is not None:
            with attempt:
                run.finish(exit_code=exit_code)

    def _open(self) -> wandb.Run:
        server = server_url()
        if self._resolved_mode() == "online" and server not in _unreachable_servers:
            with SuppressWandbErrors(
                f"W&B at {server} cannot be used (%s); logging offline instead (upload later: wandb sync)."
            ):
                return self._init("online")
            _unreachable_servers.add(server)
            # The client's service still holds the id of the run that could not be opened.
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
        card, trial, previous = self.card, self.card.trial, self._previous_id()
        return wandb.init(
            mode=mode,
            project=(trial and trial.project) or card.project,
            entity=(trial and trial.entity) or card.entity,
            group=card.group,
            job_type=card.job_type,
            name=card.name,
            tags=list(card.tags),
            notes=card.notes,
            config=redact({**card.config, **(trial.parameters if trial else {})}),
            dir=str(self.run_dir),
            # A new id and `create_new`: never the run of an earlier stage, nor the one in WANDB_RUN_ID.
            # `wandb leet` lists runs by it.
            id=previous or (trial.run_id if trial else f"{card.job_type}_{secrets.token_hex(4)}"),
            reinit="create_new",
            # The sweep has created the run of a trial before its first start.
            resume="allow" if mode == "online" and (previous or not trial) else None,
            settings=wandb.Settings(
                silent=True,
                console="off",
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
                disable_code=True,
                sweep_id=trial.sweep if trial else None,
            ),
        )

    def _steps_sent(self, run: wandb.Run) -> int:
        """First step of a resumed run that W&B does not have: from the server, or from the files of an offline run."""
        if not run.offline:
            return run.starting_step
        parts = self._directory.glob(f"*run-*-{run.id}")
        return next_step(part for part in parts if part.name != Path(run.dir).parent.name)

    @property
    def _directory(self) -> Path:
        return self.run_dir / "wandb"

    @property
    def _identity_path(self) -> Path:
        return self._directory / f"{self.card.job_type}.json"

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
        write_text(self._identity_path, json.dumps(identity, indent=2) + "\n")


@cache
def _log_once(message: str) -> None:
    """Log a message once per process rather than once per stage."""
    log.info(message)


OBJECTIVE = "objective"
"""Name of the metric that a sweep maximizes, as in the sweep's config."""
SAMPLE_LOG_COLUMNS = ["iteration", "prompt", "response", "score", "finished"]


class WandbLogger(Logger):
    """Passes Lightning's metrics to an open W&B run.

    Lightning's own logger opens runs by itself, takes over any open run, and finishes none.
    """

    def __init__(self, tracked: WandbRun) -> None:
        super().__init__()
        self._tracked = tracked

    @property
    def name(self) -> str:
        return self._tracked.card.project

    @property
    def version(self) -> str | None:
        return None if self._tracked.run is None else self._tracked.run.id

    @property
    def experiment(self) -> wandb.Run | None:
        """The run itself, for callbacks that use W&B's own functions."""
        return self._tracked.run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row of history, with the optimizer step beside it."""
        self._tracked.log_row(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the run was opened with the whole config."""


class WandbSink:
    """Passes a stage's results to an open W&B run.

    Args:
        content: of artifacts, see `wandb_artifact`; None: artifacts are not logged.
    """

    def __init__(self, tracked: WandbRun, content: Content | None) -> None:
        self._tracked = tracked
        self._content = content
        self._sample_log: wandb.Table | None = None

    def log_summary(self, figures: Mapping[str, float | str]) -> None:
        self._tracked.summarize(figures)

    def log_objective(self, objective: float) -> None:
        self._tracked.log({OBJECTIVE: objective})
        self._tracked.summarize({OBJECTIVE: objective})

    def log_samples(self, rows: Sequence[SampleRow]) -> None:
        columns: list[str | int] = [field.name for field in fields(SampleRow)]
        table = wandb.Table(columns=columns, data=[list(asdict(row).values()) for row in rows])
        self._tracked.log({"samples": table})

    def log_rollout_samples(self, iteration: int, rows: Sequence[ScoredResponse]) -> None:
        """Append rows to an incremental table: only new rows are sent, and W&B shows them with all earlier ones."""
        self._tracked.log_beside(lambda: {"sample_log": self._extended_sample_log(iteration, rows)})

    def log_plots(self, paths: Sequence[Path]) -> None:
        self._tracked.log({f"plots/{path.stem}": wandb.Image(str(path)) for path in paths})

    def log_input_artifact(self, artifact: Artifact) -> None:
        if self._content is not None:
            self._tracked.take(artifact)

    def log_output_artifact(self, artifact: Artifact) -> None:
        if self._content is not None:
            self._tracked.leave(artifact, self._content)

    def _extended_sample_log(self, iteration: int, rows: Sequence[ScoredResponse]) -> wandb.Table:
        if self._sample_log is None:
            self._sample_log = wandb.Table(columns=list(SAMPLE_LOG_COLUMNS), log_mode="INCREMENTAL")
        for row in rows:
            self._sample_log.add_data(iteration, row.prompt.plain(), row.response, row.reward, row.finished)
        return self._sample_log
