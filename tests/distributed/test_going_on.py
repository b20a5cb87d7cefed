"""A run of two processes that is interrupted goes on as if nothing had happened."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
from runs import distances, ended, from_stages_of, history, started
from trainings import TRAININGS

from rlhf_lightning.stages.run_directory import RunDirectory

PATIENCE = 120.0


def ppo_of(whole: Path) -> tuple[str, ...]:
    """Overrides of the training that is interrupted here: PPO of the whole pipeline, from the stages before it."""
    return (*from_stages_of(whole), *TRAININGS["pipeline"].overrides, "trainer.accelerator=cpu")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def test_a_launcher_and_then_a_process_are_killed_and_the_run_goes_on(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    whole, cut = trained("pipeline", "ddp"), tmp_path / "cut"
    process = started("train", *ppo_of(whole), "trainer=ddp", f"paths.run_dir={cut}", cwd=tmp_path)
    wait_for(cut / "checkpoints" / "ppo" / "iteration=000001.ckpt")
    process.kill()
    code, said = ended(process)
    assert code == -signal.SIGKILL, said
    wait_until_nobody_is_at(cut)
    assert RunDirectory.open(cut).status.state == "interrupted"

    process = started("train", f"resume={cut}", cwd=tmp_path)
    wait_for(cut / "checkpoints" / "ppo" / "iteration=000002.ckpt")
    psutil.Process(process.pid).children()[1].kill()
    code, said = ended(process)
    assert code == 1
    assert "goes on from" in said
    assert "Process 1 of 2 was killed by SIGKILL." in said
    status = RunDirectory.open(cut).status
    assert status.state == "failed"
    assert status.error is not None
    assert status.error.what == "Process 1 of 2 was killed by SIGKILL."

    assert_goes_on(cut, whole)


def test_a_run_of_shards_that_is_told_to_stop_goes_on(trained: Callable[..., Path], tmp_path: Path) -> None:
    whole, cut = trained("pipeline", "fsdp"), tmp_path / "cut"
    process = started("train", *ppo_of(whole), "trainer=fsdp", f"paths.run_dir={cut}", cwd=tmp_path)
    wait_for(cut / "checkpoints" / "ppo" / "iteration=000001.ckpt")
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert code == 130, said
    assert RunDirectory.open(cut).status.state == "interrupted"
    assert_goes_on(cut, whole)


def assert_goes_on(cut: Path, whole: Path) -> None:
    code, said = ended(started("train", f"resume={cut}", cwd=cut.parent))
    assert code == 0, said
    assert "goes on from" in said
    assert {distance.largest for distance in distances(whole / "ppo", cut / "ppo").values()} == {0.0}
    assert {key: value for key, value in history(whole).items() if key[0] == "ppo"} == history(cut)


def wait_until_nobody_is_at(run: Path) -> None:
    """Until the processes have ended whose launcher was killed: they are interrupted then."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(RunDirectory.open(run).status.pid).wait(PATIENCE)
