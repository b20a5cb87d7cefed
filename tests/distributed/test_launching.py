"""How processes are started and watched, and which configs cannot be spread over them."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from runs import SMALL, ended, find_modules_in, started

from rlhf_lightning.cli.main import main
from rlhf_lightning.runs import launch
from rlhf_lightning.runs.launch import Children, outcome_of
from rlhf_lightning.stages.run_directory import RunDirectory, RunError

WAITING = "import time; time.sleep(60)"
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


def python(*programs: str) -> Children:
    return Children([subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) for program in programs])


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", {}, [])


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.3)


def test_processes_that_finish(run_dir: RunDirectory) -> None:
    children = python("", "")
    children.wait()
    assert children.failed is None
    assert outcome_of(run_dir, children).exit_code == 0


def test_when_one_fails_the_others_are_ended(run_dir: RunDirectory) -> None:
    run_dir.update_status(state="failed", error=RunError("Process 1 of 3: no luck.", fix="try again"))
    children = python(WAITING, "raise SystemExit(2)", STUBBORN)
    deaf = children.processes[2].stdout
    assert deaf is not None
    deaf.readline()
    children.wait()
    assert children.failed == 1
    assert (children.code(0), children.code(2)) == (-signal.SIGTERM, -signal.SIGKILL)
    outcome = outcome_of(run_dir, children)
    # What the process said of itself stands.
    assert outcome.error == RunError("Process 1 of 3: no luck.", fix="try again")
    assert outcome.exit_code == 2


def test_one_that_is_killed_is_named(run_dir: RunDirectory) -> None:
    children = python(WAITING, WAITING)
    children.processes[1].kill()
    children.wait()
    outcome = outcome_of(run_dir, children)
    assert (outcome.state, outcome.exit_code) == ("failed", 1)
    assert run_dir.status.error == outcome.error
    assert outcome.error is not None
    assert outcome.error.what == "Process 1 of 2 was killed by SIGKILL."
    assert "out of memory" in (outcome.error.fix or "")


def test_the_one_that_was_killed_is_the_cause_and_not_the_one_that_missed_it(run_dir: RunDirectory) -> None:
    children = python("raise SystemExit(1)", WAITING)
    children.processes[1].kill()
    for process in children.processes:
        process.wait()
    children.wait()
    outcome_of(run_dir, children)
    assert children.failed == 1


def test_signals_are_passed_on(run_dir: RunDirectory) -> None:
    children = python(WAITING, WAITING)
    with children.forwarding_signals():
        signal.raise_signal(signal.SIGTERM)
        children.wait()
    outcome = outcome_of(run_dir, children)
    assert (outcome.state, outcome.exit_code) == ("interrupted", 130)
    assert run_dir.status.state == "interrupted"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["trainer.devices=2"], "trainer.devices: 2 devices on 1 nodes need 2 processes, and one runs"),
        (["trainer.nodes=2"], "trainer.nodes: 1 devices on 2 nodes need 2 processes, and one runs"),
        (["trainer=ddp", "trainer.nodes=2"], "trainer.nodes: 2 nodes need a launcher, and none started this"),
        (
            ["trainer=ddp", "sft.batch_size=33", "sft.micro_batch_size=33"],
            "sft.batch_size: an optimizer step of 33 does not divide into micro-batches of 33 on 2 processes",
        ),
        (
            ["trainer=ddp", "sft.batch_size=48", "sft.micro_batch_size=16"],
            "sft.batch_size: an optimizer step of 48 does not divide into micro-batches of 16 on 2 processes",
        ),
        (
            ["trainer=ddp", "reward_model.batch_size=7", "reward_model.micro_batch_size=7"],
            "reward_model.batch_size: an optimizer step of 7 does not divide",
        ),
        (
            ["trainer=ddp", "trainer.devices=3", "pipeline=ppo", "ppo.policy_from=base", "ppo.reward_from=."],
            "ppo.minibatches: an optimizer step of 16 does not divide into micro-batches of 4 on 3 processes",
        ),
        (["trainer=fsdp", "trainer.precision=16-mixed"], "trainer.precision: 16-mixed scales the loss"),
        (["trainer=fsdp", "ppo.kl_budget=3"], "ppo.kl_budget: it keeps a copy of the weights"),
        (["trainer=dpp"], "trainer"),
    ],
)
def test_what_cannot_be_spread_is_refused(
    overrides: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    assert main(["train", "debug=tiny", "logger=none", *overrides, f"paths.run_dir={run_dir}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert complaint in said
    assert not run_dir.exists()


def test_a_config_that_was_not_meant_for_the_processes_that_were_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert main(["train", "debug=tiny", "trainer=ddp"]) == 2
    assert "1 nodes times 2 devices are 2 processes, and 4 were started" in " ".join(capsys.readouterr().err.split())
    assert main(["train", "-m", "debug=tiny", "seed=1,2"]) == 2
    assert "a sweep starts the processes of its jobs itself" in " ".join(capsys.readouterr().err.split())


BREAKING = """
import pytorch_lightning as pl
from rlhf_lightning.distributed import rank

class Breaking(pl.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if rank() == 1:
            raise RuntimeError("rank one gave up")
"""


def test_a_process_that_fails_says_so_for_all(tmp_path: Path) -> None:
    (tmp_path / "breaking.py").write_text(BREAKING)
    extra = ["callbacks.extra=[{_target_: breaking.Breaking}]", "allow_targets=[breaking]", "pipeline=sft"]
    run = tmp_path / "run"
    process = started(
        *("train", *SMALL[:3], *extra, "trainer=ddp", "trainer.accelerator=cpu", f"paths.run_dir={run}"),
        cwd=tmp_path,
        body=(find_modules_in, (str(tmp_path),)),
    )
    code, said = ended(process)
    assert code == 1, said
    status = RunDirectory.open(run).status
    assert (status.state, status.stage) == ("failed", "sft")
    assert status.error is not None
    assert status.error.what == "Process 1 of 2: RuntimeError: rank one gave up"
    assert "rank one gave up" in (run / "error.rank1.log").read_text()
    # Told once, and not drowned in what the other process thinks of it.
    assert said.count("rank one gave up") == 1
    assert "Traceback" not in said
