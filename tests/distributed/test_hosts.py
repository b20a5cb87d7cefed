"""Processes that others start: torchrun on one machine, and on two hosts, which two network namespaces stand for."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import SMALL, as_torchrun, assert_alike, ended, environment, on_host, started
from trainings import LORA

from rlhf_lightning.runs.launch import free_port
from rlhf_lightning.stages.run_directory import RunDirectory

ADDRESSES = ("10.197.41.1", "10.197.41.2")
PORT = "29571"
SFT = (*SMALL[:3], "pipeline=sft")


@pytest.fixture
def torchrun(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Runs torchrun with two processes on this machine, to its end."""

    def run(*overrides: str) -> tuple[int, str]:
        options = ("--nproc-per-node=2", f"--master-port={free_port()}", "-m", "rlhf_lightning", "train")
        return ended(started(cwd=tmp_path, body=(as_torchrun, (None, *options, *overrides))))

    return run


def test_torchrun_starts_the_processes(
    trained: Callable[..., Path], torchrun: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    choices = ("trainer=ddp", "trainer.accelerator=cpu", f"paths.outputs={tmp_path}")
    code, said = torchrun(*SMALL[:-1], *LORA[:2], "pipeline.stages=[sft,comparisons,reward_model]", *choices)
    assert code == 0, said
    # Its name has the time in it, and yet both processes found it.
    run = RunDirectory.open((tmp_path / "latest").resolve())
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1
    assert run.status.state == "finished"
    for stage in ("sft", "reward_model"):
        assert_alike(trained("LoRA") / stage, run.path / stage)


def test_torchrun_is_told_of_a_directory_that_is_taken(alone: Path, torchrun: Callable[..., tuple[int, str]]) -> None:
    code, said = torchrun(*SMALL, "trainer=ddp", "trainer.accelerator=cpu", f"paths.run_dir={alone}")
    assert code != 0
    assert "The run directory holds a run already." in said


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them; each is a host that sees the other and nothing else."""
    names = [f"rlhf-{uuid.uuid4().hex[:6]}-{number}" for number in (0, 1)]
    made: list[str] = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ends = [f"v{name[-8:]}" for name in names]
        ip("link", "add", ends[0], "netns", names[0], "type", "veth", "peer", "name", ends[1], "netns", names[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("-n", name, "link", "set", end, "name", "cable")
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        yield names[0], names[1]
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"this machine does not let us make network namespaces: {error}")
    finally:
        for name in made:
            ip("netns", "del", name)


@pytest.mark.skipif(shutil.which("ip") is None, reason="there is no `ip` to make network namespaces with")
@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_two_hosts_train_what_one_process_trains(
    alone: Path, hosts: tuple[str, str], tmp_path: Path, launcher: str
) -> None:
    choices = (
        *("trainer=ddp", "trainer.accelerator=cpu", "trainer.nodes=2", "trainer.devices=1"),
        f"paths.run_dir={tmp_path / 'run'}",
    )
    processes = []
    for node, host in enumerate(hosts):
        changes = {"GLOO_SOCKET_IFNAME": "cable"}
        command = ("train", *SFT, *choices)
        if launcher == "torchrun":
            meeting = (f"--node-rank={node}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}")
            options = ("--nnodes=2", "--nproc-per-node=1", *meeting, "-m", "rlhf_lightning", *command)
            body: Any = (as_torchrun, (host, *options))
            processes.append(started(cwd=tmp_path, changes=changes, body=body))
        else:
            changes |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(node), "SLURM_NODEID": str(node)}
            changes |= {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "host[0-1]", "SLURM_JOB_ID": "4571"}
            changes |= {"MASTER_ADDR": ADDRESSES[0]}  # the names of these hosts are nobody's
            processes.append(started(*command, cwd=tmp_path, changes=changes, body=(on_host, (host,))))
    for code, said in [ended(process) for process in processes]:
        assert code == 0, said
    assert RunDirectory.open(tmp_path / "run").status.state == "finished"
    assert_alike(alone / "sft", tmp_path / "run" / "sft")


SCONTROL = """#!/bin/sh
echo 127.0.0.1
"""

SRUN = """#!/bin/sh
printf '%s\\n' "$MASTER_ADDR" "$MASTER_PORT" "$@" > asked
"""


def asked_of_srun(directory: Path) -> list[str]:
    """What `scripts/slurm.sh` has srun start in each task, with where they meet in front."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (directory / name).write_text(text)
        (directory / name).chmod(0o755)
    # What the script asks of the place where the job was submitted.
    (directory / ".venv" / "bin").mkdir(parents=True)
    (directory / ".venv" / "bin" / "activate").touch()
    kept = environment()
    slurm = {
        "PATH": f"{directory}:{kept['PATH']}",
        "SLURM_SUBMIT_DIR": str(directory),
        "SLURM_JOB_ID": "4572",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    script = Path(__file__).parents[2] / "scripts" / "slurm.sh"
    command = ["bash", str(script), *SFT, "trainer.accelerator=cpu", "trainer.precision=32-true"]
    subprocess.run(command, env={**kept, **slurm}, check=True)
    return (directory / "asked").read_text().splitlines()


def test_the_slurm_script_starts_a_run_and_goes_on_with_it(alone: Path, tmp_path: Path) -> None:
    address, port, *command = asked_of_srun(tmp_path)
    assert (address, port) == ("127.0.0.1", "19572")
    assert command[:3] == ["--kill-on-bad-exit=1", "rlhf", "train"]

    def srun() -> tuple[int, str]:
        shared = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "here"}
        shared |= {"MASTER_ADDR": address, "MASTER_PORT": port, "SLURM_JOB_ID": "4572"}
        tasks = [
            started(*command[2:], cwd=tmp_path, changes={**shared, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
            for rank in ("0", "1")
        ]
        (code, said), other = map(ended, tasks)
        assert other[0] == code, other
        return code, said

    code, said = srun()
    assert code == 0, said
    run = RunDirectory.open(tmp_path / "outputs" / "slurm-4572")
    assert run.status.state == "finished"
    assert_alike(alone / "sft", run.path / "sft")
    code, said = srun()
    assert code == 0, said
    assert "there is nothing to resume" in said
