"""The files that W&B leaves: read when a run goes on, and shown for a whole sweep by `wandb leet`."""

from __future__ import annotations

import logging
import os
import pty
import re
import select
import subprocess
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest
from offline_run import finished
from wandb.util import get_core_path

from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.tracking.wandb_files import next_step
from rlhf_lightning.tracking.wandb_run import RunCard, WandbRun

SIZE = (40, 300)
"""Lines and columns of a terminal in which names of runs fit."""


def log(run_dir: Path, stage: str, name: str, value: float) -> None:
    run_dir.mkdir(parents=True, exist_ok=True)
    card = RunCard("test", None, "sweep", stage, name, [], None, {"seed": 1}, STAGES[stage].logged)
    with WandbRun(card, run_dir, "offline") as tracked:
        for episodes in (8, 16, 24):
            tracked.log_row({"objective/score": value * episodes, "rollout/episodes": episodes}, episodes)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two jobs, and a run beside the sweep."""
    folder = tmp_path_factory.mktemp("runs")
    log(folder / "alone", "ppo", "ppo alone", 0.3)
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").write_text('{"overrides": []}')
    for job, coef in enumerate(("0.02", "0.2")):
        log(folder / "sweep" / str(job), "ppo", f"ppo kl.coef={coef}", float(coef))
    return folder / "sweep"


def test_the_runs_of_all_jobs_lie_in_one_folder_which_can_be_moved(sweep: Path) -> None:
    moved = sweep.rename(sweep.with_name("moved"))
    try:
        shown = [finished(part) for part in (moved / "wandb").iterdir()]
    finally:
        moved.rename(sweep)
    assert {run.run.display_name for run in shown} == {"ppo kl.coef=0.02", "ppo kl.coef=0.2"}
    assert not (sweep.parent / "wandb").exists(), "a run that is no job stays by itself"


def test_leet_shows_the_runs_of_a_sweep_beside_each_other(sweep: Path, tmp_path: Path) -> None:
    names = [part.name for part in (sweep / "wandb").iterdir()]
    expected = ["[2 items]", *names, "ppo kl.coef=0.", "objective/score"]  # of one run also its name and its charts
    screen = leet(sweep / "wandb", expected, tmp_path)
    assert [text for text in expected if text not in screen] == []


def leet(folder: Path, expected: list[str], config: Path) -> str:
    """What `wandb leet` has written to a terminal by the time that it shows what is expected, or after 20 seconds."""
    terminal, its_side = pty.openpty()
    termios.tcsetwinsize(its_side, SIZE)
    environment = {**os.environ, "TERM": "xterm-256color", "WANDB_CONFIG_DIR": str(config)}
    command = [get_core_path(), "leet", "run", "--no-observability", str(folder)]
    process = subprocess.Popen(command, stdin=its_side, stdout=its_side, stderr=its_side, env=environment)
    os.close(its_side)
    screen, deadline = "", time.monotonic() + 20.0
    try:
        while time.monotonic() < deadline and not all(text in screen for text in expected):
            if select.select([terminal], [], [], 0.1)[0]:
                written = os.read(terminal, 1 << 16).decode(errors="replace")
                screen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
        with suppress(OSError):
            os.write(terminal, b"q")
        process.wait(10.0)
    finally:
        process.kill()
        os.close(terminal)
    return screen


def test_a_file_that_cannot_be_read_costs_a_warning_and_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log(tmp_path, "ppo", "ppo x", 0.1)
    (file,) = (tmp_path / "wandb").glob("offline-*/*.wandb")
    finished(file.parent)
    file.unlink()
    file.mkdir()
    with caplog.at_level(logging.WARNING):
        log(tmp_path, "ppo", "ppo x", 0.1)
    warnings = [record.message for record in caplog.records if record.name.startswith("rlhf_lightning")]
    assert ["W&B could not be started" in warning for warning in warnings] == [True]
    assert "cannot be read" in warnings[0]


def test_the_parts_of_a_run_go_as_far_as_the_furthest(tmp_path: Path) -> None:
    log(tmp_path / "a", "ppo", "ppo x", 0.1)
    log(tmp_path / "b", "sft", "sft x", 0.1)
    (far,) = (tmp_path / "a" / "wandb").glob("offline-*/*.wandb")
    (near,) = (tmp_path / "b" / "wandb").glob("offline-*/*.wandb")
    finished(far.parent)
    finished(near.parent)
    near.write_bytes(near.read_bytes()[:1000])  # of its rows nothing is left
    # Two figures a row: the rows begin at 0, 2 and 4.
    assert next_step([near.parent, far.parent]) == 5
