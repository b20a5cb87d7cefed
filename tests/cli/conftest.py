"""A pipeline that does nothing but what a test tells it to, in this process or in the processes of a sweep."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings

ROOT = Path(__file__).resolve().parents[2]

Pipeline = Callable[[RunSettings, RunDirectory], None]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def use_pipeline(monkeypatch: pytest.MonkeyPatch) -> Callable[[Pipeline], None]:
    """Puts a function in the pipeline's place for runs in this process."""

    def use(pipeline: Pipeline) -> None:
        monkeypatch.setattr("rlhf_lightning.runs.run._run_pipeline", pipeline)

    return use


@pytest.fixture
def use_pipeline_in_jobs(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Puts `run_pipeline(settings, run_dir)` with the given body in the pipeline's place, in new interpreters."""

    def use(body: str) -> None:
        folder = tmp_path_factory.mktemp("startup")
        lines = [
            "import sys",
            "if 'run-job' in sys.orig_argv:",
            "    from rlhf_lightning.runs import run",
            "    def run_pipeline(settings, run_dir):",
            textwrap.indent(textwrap.dedent(body), "        "),
            "    run._run_pipeline = run_pipeline",
        ]
        (folder / "sitecustomize.py").write_text("\n".join(lines))
        monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}")

    return use


Job = Callable[[RunDirectory], int]


@pytest.fixture
def use_job(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], list[Path]]:
    """Puts a function, which returns an exit code, in the place of the processes of a sweep's jobs.

    What it returns is the list of the directories that the function was called with.
    """

    def use(job: Job) -> list[Path]:
        directories: list[Path] = []

        def call(command: list[str], *_: object) -> int:
            assert command[1:4] == ["-m", "rlhf_lightning", "run-job"]
            directories.append(Path(command[-1]))
            return job(RunDirectory.open(Path(command[-1])))

        monkeypatch.setattr("rlhf_lightning.runs.sweep_jobs.run_process", call)
        return directories

    return use
