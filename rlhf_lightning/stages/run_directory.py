"""The directory of one run: its lock, its layout, atomic writes to its files, and the loader of its YAML."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, Unpack

import yaml
from filelock import FileLock, Timeout

from rlhf_lightning.atomic import temporary_beside, write_text
from rlhf_lightning.errors import RunDirectoryError

Loader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C library's parser if PyYAML was built with it: ten times as fast, which matters with a hundred runs."""


CONFIG = "config.yaml"
OVERRIDES = "overrides.txt"
STATUS = "status.json"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
REPRODUCE = "reproduce.sh"
CHANGES = "changes.patch"
REPRODUCTION = "reproduction.json"
ERROR_LOG = "error.log"
RUN_LOG = "run.log"
LATEST = "latest"
LOCK = ".lock"
SWEEP = "sweep.json"

RunState = Literal["pending", "running", "finished", "failed", "interrupted"]
"""`pending`: the directory and config exist, but no process has started the run yet."""


@dataclass(frozen=True)
class RunError:
    """The error of a failed run, as stored in `status.json`."""

    what: str
    where: str | None = None
    fix: str | None = None
    traceback_file: str | None = None
    is_defect: bool = False
    """True for a defect of the program, rather than of its input."""


@dataclass(frozen=True)
class Status:
    """Content of `status.json`, which is readable at any moment of a run."""

    state: RunState = "running"
    stage: str | None = None
    started: str = field(default_factory=lambda: now())
    updated: str = field(default_factory=lambda: now())
    pid: int = field(default_factory=os.getpid)
    error: RunError | None = None
    artifacts: dict[str, str] = field(default_factory=dict)


class StatusChange(TypedDict, total=False):
    """The fields of a `Status` that may be changed."""

    state: RunState
    stage: str | None
    started: str
    pid: int
    error: RunError | None
    artifacts: dict[str, str]


class RunDirectory:
    """One run's directory.

    Layout: config.yaml, overrides.txt, status.json, metrics.json, history.csv, samples.jsonl, provenance.json,
    reproduce.sh, run.log, one folder per stage with its artifact, `checkpoints/<stage>/`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls, path: Path, settings: Mapping[str, Any], overrides: Sequence[str], state: RunState = "running"
    ) -> Self:
        """Claims a directory for a new run and records its config and overrides.

        The claim is the exclusive creation of status.json, so that exactly one of two runs that claim the same
        directory at the same time gets it.

        Args:
            path: the directory; created if it does not exist.
            settings: the resolved config, plain.
            overrides: as the user typed them.
            state: `pending` where the run will be started later, and by another process.

        Raises:
            RunDirectoryError: if it holds a run already, or cannot be written.
        """
        path = path.absolute()
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            if holds_a_run(path):
                raise already_taken(path)
            try:
                claim = (path / STATUS).open("x", encoding="utf-8")
            except FileExistsError:
                raise already_taken(path) from None
            directory = cls(path)
            try:
                with claim:
                    claim.write(_as_json(asdict(Status(state=state))))
                directory.write_settings(settings, overrides)
            except (OSError, RunDirectoryError):
                # A claim without a run would block the directory for every later run.
                for name in (STATUS, CONFIG):
                    (path / name).unlink(missing_ok=True)
                raise
        return directory

    @classmethod
    def open(cls, path: Path) -> Self:
        """An existing run.

        Raises:
            RunDirectoryError: if no run lies there.
        """
        path = path.absolute()
        if not holds_a_run(path):
            raise RunDirectoryError("There is no run here.", where=str(path), fix=f"name a directory with a {CONFIG}")
        return cls(path)

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run."""
        return dict(yaml.load((self.path / CONFIG).read_text(encoding="utf-8"), Loader))

    @property
    def overrides(self) -> list[str]:
        """The overrides that the user typed."""
        return (self.path / OVERRIDES).read_text(encoding="utf-8").splitlines()

    @property
    def status(self) -> Status:
        """The current status of the run."""
        read = json.loads((self.path / STATUS).read_text(encoding="utf-8"))
        error = RunError(**read.pop("error")) if read["error"] else read.pop("error")
        return Status(**read, error=error)

    @property
    def metrics(self) -> dict[str, Any] | None:
        """The final figures; None while there are none."""
        path = self.path / METRICS
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    @property
    def provenance(self) -> dict[str, Any] | None:
        """The content of provenance.json; None before the run has started."""
        path = self.path / PROVENANCE
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def stage_dir(self, stage: str) -> Path:
        """The folder of a stage's artifact."""
        return self._made(self.path / stage)

    def checkpoint_dir(self, stage: str) -> Path:
        """The folder of a stage's checkpoints, which the first of them makes."""
        return self.path / "checkpoints" / stage

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Lock that keeps other processes from running here until the `with` block or this process ends.

        Raises:
            RunDirectoryError: another process holds it.
        """
        with writing_to(self.path):
            lock = FileLock(self.path / LOCK, timeout=0, is_singleton=True)
            try:
                lock.acquire()
            except Timeout:
                pid = self.status.pid
                fix = f"wait until it has ended, or stop it first: kill {pid}"
                raise RunDirectoryError(
                    f"The run is going on: process {pid} is at it.", where=str(self.path), fix=fix
                ) from None
        try:
            yield
        finally:
            lock.release()

    @property
    def is_running(self) -> bool:
        """True if a process runs here now, by its lock, which is released when the process ends, however it ends."""
        return is_locked(self.path / LOCK)

    def write_settings(self, settings: Mapping[str, Any], overrides: Sequence[str]) -> None:
        """Writes the resolved config, plain, and the overrides as they were typed."""
        self.write_text(CONFIG, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))
        self.write_text(OVERRIDES, "".join(f"{override}\n" for override in overrides))

    def update_status(self, **changes: Unpack[StatusChange]) -> None:
        """Changes fields of status.json; the others stay as they are."""
        self.write_json(STATUS, asdict(replace(self.status, **changes, updated=now())))

    def add_artifact(self, stage: str, path: Path) -> None:
        """Records the path of a stage's artifact in status.json, relative to the run if it lies inside."""
        inside = path.absolute().is_relative_to(self.path)
        place = path.absolute().relative_to(self.path) if inside else path.absolute()
        self.update_status(artifacts={**self.status.artifacts, stage: str(place)})

    def write_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Writes metrics.json: the final figures, which scripts read."""
        self.write_json(METRICS, dict(metrics))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a JSON file of the run atomically: a reader sees the old content or the new one, never a part.

        Raises:
            RunDirectoryError: if it cannot be written.
        """
        self.write_text(name, _as_json(content))

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file of the run atomically, as `write_json` does."""
        with writing_to(self.path):
            write_text(self.path / name, text)

    def _made(self, path: Path) -> Path:
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
        return path


def holds_a_run(path: Path) -> bool:
    """True if a run or a sweep was started in a directory."""
    return any((path / name).exists() for name in (CONFIG, STATUS, SWEEP, "multirun.yaml"))


def is_locked(path: Path) -> bool:
    """True if a process holds a lock file."""
    if not path.exists():
        return False
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return True
    lock.release()
    return False


def already_taken(path: Path) -> RunDirectoryError:
    """The error for a directory that belongs to another run."""
    fix = "choose another with paths.run_dir=... (a sweep: paths.sweep_dir=...), or remove it"
    return RunDirectoryError("The run directory holds a run already.", where=str(path), fix=fix)


def point_latest(outputs: Path, target: Path) -> None:
    """Makes `outputs/latest` point to a run or sweep, as a relative symbolic link.

    A link is replaced atomically. If `latest` is no link, or the filesystem has none, the path is written to
    `outputs/latest.txt` instead; no file of the user's is deleted.

    Raises:
        RunDirectoryError: if `outputs` cannot be written.
    """
    link = outputs.absolute() / LATEST
    with writing_to(outputs):
        outputs.mkdir(parents=True, exist_ok=True)
        if link.is_symlink() or not link.exists():
            with (
                contextlib.suppress(NotImplementedError, PermissionError),
                temporary_beside(link) as fresh,
            ):
                fresh.symlink_to(os.path.relpath(target.absolute(), link.parent), target_is_directory=True)
                fresh.replace(link)
                return
        write_text(link.with_suffix(".txt"), f"{target.absolute()}\n")


def pin_latest(overrides: Sequence[str]) -> list[str]:
    """Overrides with `.../latest/...` replaced by the run that the link points to now.

    A run moves the link to itself when it starts, before it opens its inputs.
    """

    def spelled_out(match: re.Match[str]) -> str:
        link = Path(match.group())
        return str(link.resolve()) if link.is_symlink() else match.group()

    return [re.sub(rf"[^\s=,\[\]'\"]*{LATEST}(?=/)", spelled_out, override) for override in overrides]


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns an `OSError` while writing in a `with` block into an error that names the path and the remedy.

    Raises:
        RunDirectoryError: in place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(str(error.filename or path), error.strerror or str(error)) from error


def unwritable(where: str, reason: str) -> RunDirectoryError:
    """The error for a directory that a run cannot write to."""
    fix = "free space, check permissions, or choose another place with paths.outputs=..."
    return RunDirectoryError(f"The run directory cannot be written: {reason}.", where=where, fix=fix)


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    """The value with null for every number that is not finite: JSON has no NaN, and most readers reject it."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def now() -> str:
    """The current time in the format of status.json."""
    return datetime.now(UTC).isoformat(timespec="seconds")
