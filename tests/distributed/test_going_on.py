"""A run of two processes that is interrupted goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from runs import distances, ended, history, started, train

from rlhf_lightning.experiment.run_directory import RunDirectory

LONGER = ("ppo.iterations=5", "callbacks.save_every=1", "trainer.accelerator=cpu")
PATIENCE = 120.0


@pytest.fixture(scope="session")
def uninterrupted(from_stages: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run that nothing interrupts, by strategy."""

    @cache
    def run(strategy: str) -> Path:
        world = tmp_path_factory.mktemp(strategy)
        return train(world / "run", *from_stages, *LONGER, f"trainer={strategy}", cwd=world)

    return run


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "number"), [("ddp", signal.SIGKILL), ("fsdp", signal.SIGTERM)])
def test_interrupted_equals_uninterrupted(
    from_stages: tuple[str, ...],
    uninterrupted: Callable[[str], Path],
    tmp_path: Path,
    strategy: str,
    number: signal.Signals,
) -> None:
    cut = tmp_path / "cut"
    process = started("train", *from_stages, *LONGER, f"trainer={strategy}", f"paths.run_dir={cut}", cwd=tmp_path)
    wait_for(cut / "checkpoints" / "ppo" / "iteration=000002.ckpt")
    process.send_signal(number)
    code, said = ended(process)
    assert code == (130 if number == signal.SIGTERM else -signal.SIGKILL), said
    wait_until_nobody_is_at(cut)
    assert RunDirectory.open(cut).status.state == "interrupted"

    code, said = ended(started("train", f"resume={cut}", cwd=tmp_path))
    assert code == 0, said
    assert "goes on from" in said
    whole = uninterrupted(strategy)
    assert {distance.largest for distance in distances(whole, cut).values()} == {0.0}
    assert history(whole) == history(cut)


@pytest.mark.slow
def test_a_process_that_was_killed_is_named_and_the_run_goes_on(
    from_stages: tuple[str, ...], uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    process = started("train", *from_stages, *LONGER, "trainer=ddp", f"paths.run_dir={cut}", cwd=tmp_path)
    wait_for(cut / "checkpoints" / "ppo" / "iteration=000002.ckpt")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    code, said = ended(process)
    assert code == 1
    assert "Process 1 of 2 was killed by SIGKILL." in said
    status = RunDirectory.open(cut).status
    assert status.state == "failed"
    assert status.error is not None
    assert status.error.what == "Process 1 of 2 was killed by SIGKILL."

    code, said = ended(started("train", f"resume={cut}", cwd=tmp_path))
    assert code == 0, said
    assert {distance.largest for distance in distances(uninterrupted("ddp"), cut).values()} == {0.0}


def wait_until_nobody_is_at(run: Path) -> None:
    """Until the processes have ended whose launcher was killed: they are interrupted then."""
    deadline = time.monotonic() + PATIENCE
    pid = RunDirectory.open(run).status.pid
    while True:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "the first process goes on without its launcher"
        time.sleep(0.1)
