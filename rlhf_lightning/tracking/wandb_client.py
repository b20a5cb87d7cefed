"""W&B's client: its state before a run is opened, metrics and artifacts as it wants them, its errors suppressed."""

from __future__ import annotations

import logging
import math
import netrc
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlsplit

import wandb

from rlhf_lightning.evaluation.curves import HistoryRow
from rlhf_lightning.evaluation.metrics import LoggedMetrics
from rlhf_lightning.tracking.history_file import EPISODES
from rlhf_lightning.tracking.naming import Artifact
from rlhf_lightning.tracking.redaction import redact, redact_override
from rlhf_lightning.tracking.wandb_files import hide_agent

CLOUD_HOST = "api.wandb.ai"


def server_url() -> str:
    """URL of the client's server. Silences the client's terminal output from here on."""
    with environment_restored(), hide_agent():
        return wandb.setup(settings=wandb.Settings(silent=True, console="off")).settings.base_url


def has_credentials() -> bool:
    """True if the client finds an API key without a prompt: in the environment, its settings or a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = server_url()
    hosts = [urlsplit(server).netloc]
    if server == wandb.Settings.model_fields["base_url"].default:
        # W&B's cloud has had several host names, and keys saved under this one are still valid.
        hosts.append(CLOUD_HOST)
    with environment_restored():
        known = wandb.setup().settings.api_key
    return bool(known) or any(_knows(path, host) for path in _netrc_files() for host in hosts)


def offline_by_environment() -> bool:
    """True if `WANDB_MODE` asks for offline mode; `disabled` counts as offline, so that the run is still recorded."""
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")


@contextmanager
def environment_restored() -> Iterator[None]:
    """Undo the client's changes to the environment: jobs that this process starts must not inherit its session."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("WANDB_") and name not in before]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def command_redacted() -> Iterator[None]:
    """Redact secrets from the command line that the client records with every run."""
    before = sys.argv
    sys.argv = [before[0], *map(redact_override, before[1:])]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def staging_in(directory: Path) -> Iterator[None]:
    """Have the client stage artifacts in the run, not in the home directory, unless the user set a directory."""
    with environment_restored():
        os.environ.setdefault("WANDB_DATA_DIR", str(directory))
        yield


def _netrc_files() -> list[Path]:
    named = os.environ.get("NETRC")
    return [Path(path).expanduser() for path in ([named] if named else ["~/.netrc", "~/_netrc"])]


def _knows(path: Path, host: str) -> bool:
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])


GLOBAL_STEP = "trainer/global_step"


def declare_metrics(run: wandb.Run, logged: LoggedMetrics) -> None:
    """Declare axes and summaries: rollout metrics are plotted over episodes, others over optimizer steps."""
    axis = EPISODES if logged.by_episodes else GLOBAL_STEP
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis, step_sync=True)
    for metric, values in _kept(logged).items():
        run.define_metric(metric, step_metric=axis, step_sync=True, summary=",".join(values))


def summaries(rows: Iterable[HistoryRow], stage: str, logged: LoggedMetrics) -> dict[str, dict[str, float]]:
    """The declared summary values over all that a stage has logged, `{metric: {"max": ..., "last": ...}}`.

    The client covers only the part since the run was last opened; the history file has the earlier parts as well.
    """
    kept = _kept(logged)
    values: dict[str, list[float]] = {}
    for row in rows:
        if row.stage == stage and row.name in kept and math.isfinite(row.value):
            values.setdefault(row.name, []).append(row.value)
    return {
        metric: {kind: {"min": min(seen), "max": max(seen), "last": seen[-1]}[kind] for kind in kept[metric]}
        for metric, seen in values.items()
    }


def _kept(logged: LoggedMetrics) -> dict[str, tuple[str, ...]]:
    """The summary values of each metric by name; those that are not here keep the last value."""
    return {metric.name: metric.keeps for metric in logged.metrics if len(metric.keeps) > 1}


Content = Literal["reference", "upload"]


def wandb_artifact(artifact: Artifact, content: Content) -> wandb.Artifact:
    """An artifact as W&B's client takes it.

    Its version depends on the content of its files, not on their path: jobs that share a stage get one version,
    whether it was uploaded or not. For a model on a hub only the address is kept.

    Args:
        content: `reference` notes names, sizes and checksums of files; `upload` sends them.
    """
    made = wandb.Artifact(artifact.name, type=artifact.kind, metadata=redact(_finite(artifact.metadata)))
    if isinstance(artifact.place, str):
        made.add_reference(redact(artifact.place), name="model", checksum=False)
        return made
    # One file at a time: for a whole directory the client prints that it computes checksums.
    for path in sorted(path for path in artifact.place.rglob("*") if path.is_file()):
        name = path.relative_to(artifact.place).as_posix()
        if content == "upload":
            made.add_file(str(path), name=name)
        else:
            made.add_reference(path.resolve().as_uri(), name=name)
    return made


def _finite(value: Any) -> Any:
    """Plain containers with None for every number that is not finite: W&B refuses an artifact that has one."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


log = logging.getLogger(__name__)


class SuppressWandbErrors:
    """A context that turns errors of the W&B client into one warning.

    The client raises errors of many kinds, most of them undocumented, when its service process dies or its server does
    not answer. Errors whose class the client defines, and those of the operating system, are suppressed; our own
    defects and a user's interrupt pass through.

    Args:
        warning: what to log, with `%s` for the first line of the error; None where it was logged before.
    """

    def __init__(self, warning: str | None) -> None:
        self._warning = warning
        self.failed = False

    def __enter__(self) -> SuppressWandbErrors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if kind is None or not (issubclass(kind, OSError) or kind.__module__.partition(".")[0] == "wandb"):
            return False
        if self._warning is not None:
            lines = str(error).strip().splitlines()
            log.warning(self._warning, lines[0] if lines else kind.__name__)
        self.failed = True
        return True
