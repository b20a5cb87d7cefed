"""Processes that others start: torchrun on one machine, and on two hosts, which two network namespaces stand for."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import FIRST_UPDATE, SMALL, assert_alike, ended, environment, started

from rlhf_lightning.experiment.launch import free_port
from rlhf_lightning.experiment.run_directory import RunDirectory

ADDRESSES = ("10.197.41.1", "10.197.41.2")
PORT = "29571"


def torchrun(*options: str) -> list[str]:
    """The command line of torchrun up to the module that it runs."""
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m"]


@pytest.mark.slow
def test_torchrun_starts_the_processes(alone: Path, tmp_path: Path) -> None:
    command = torchrun("--nproc-per-node=2", f"--master-port={free_port()}")
    choices = ("trainer=ddp", "trainer.accelerator=cpu", f"paths.outputs={tmp_path}")
    process = subprocess.Popen(
        [*command, "rlhf_lightning", "train", *SMALL, *FIRST_UPDATE, *choices],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    code, said = ended(process)
    assert code == 0, said
    # Its name has the time in it, and yet both processes found it.
    run = RunDirectory.open((tmp_path / "latest").resolve())
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1
    assert run.status.state == "finished"
    assert_alike(alone, run.path)


@pytest.mark.slow
def test_torchrun_is_told_of_a_directory_that_is_taken(alone: Path, tmp_path: Path) -> None:
    command = torchrun("--nproc-per-node=2", f"--master-port={free_port()}")
    choices = ("trainer=ddp", "trainer.accelerator=cpu", f"paths.run_dir={alone}")
    process = subprocess.Popen(
        [*command, "rlhf_lightning", "train", *SMALL, *choices],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    code, said = ended(process)
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


@pytest.mark.slow
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
        prefix = ["ip", "netns", "exec", host]
        changes = {"GLOO_SOCKET_IFNAME": "cable"}
        if launcher == "torchrun":
            meeting = (f"--node-rank={node}", f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}")
            command = [*torchrun("--nnodes=2", "--nproc-per-node=1", *meeting), "rlhf_lightning"]
            processes.append(
                subprocess.Popen(
                    [*prefix, *command, "train", *SMALL, *FIRST_UPDATE, *choices],
                    cwd=tmp_path,
                    env=environment(**changes),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        else:
            changes |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(node), "SLURM_NODEID": str(node)}
            changes |= {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "host[0-1]", "SLURM_JOB_ID": "4571"}
            changes |= {"MASTER_ADDR": ADDRESSES[0]}  # the names of these hosts are nobody's
            processes.append(
                started("train", *SMALL, *FIRST_UPDATE, *choices, cwd=tmp_path, prefix=prefix, changes=changes)
            )
    for code, said in [ended(process) for process in processes]:
        assert code == 0, said
    assert RunDirectory.open(tmp_path / "run").status.state == "finished"
    assert_alike(alone, tmp_path / "run")


SCONTROL = """#!/bin/sh
echo 127.0.0.1
"""

SRUN = """#!/bin/sh
shift  # --kill-on-bad-exit=1
export SLURM_STEP_NUM_TASKS=2 SLURM_NODEID=0 SLURM_STEP_NODELIST=here
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" & other=$!
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" && wait $other
"""


@pytest.mark.slow
def test_the_slurm_script_starts_a_run_and_goes_on_with_it(alone: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    # What the script asks of the place where the job was submitted.
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    slurm = {
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "4572",
        "SLURM_JOB_NODELIST": "here",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NTASKS_PER_NODE": "2",
    }
    kept = environment()
    kept = {**kept, **slurm, "PATH": f"{tmp_path}:{kept['PATH']}"}
    command = ["bash", str(root / "scripts" / "slurm.sh"), *SMALL, *FIRST_UPDATE, "trainer.accelerator=cpu"]
    command += ["trainer.precision=32-true"]
    first = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=500)
    assert first.returncode == 0, first.stderr
    run = RunDirectory.open(tmp_path / "outputs" / f"slurm-{slurm['SLURM_JOB_ID']}")
    assert run.status.state == "finished"
    assert_alike(alone, run.path)
    again = subprocess.run(command, cwd=tmp_path, env=kept, capture_output=True, text=True, timeout=500)
    assert again.returncode == 0, again.stderr
    assert "there is nothing to resume" in again.stdout
