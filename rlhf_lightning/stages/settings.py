"""Settings of the stage cache, and of sweeps: the reaction to a failed job, and the launcher of the jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_lightning.sections import Count, Name, Section


class CacheSettings(Section):
    """The stage cache: a stage that another run has finished under the same key is not run again."""

    mode: Literal["on", "off", "refresh", "read_only"]
    directory: Name


class SweepSettings(Section):
    """Settings of a sweep as a whole."""

    on_failure: Literal["continue", "stop"]


class BasicLauncher(Section):
    """One job after the other."""

    kind: Literal["basic"]


class JoblibLauncher(Section):
    """Several jobs at once on this machine."""

    kind: Literal["joblib"]
    jobs: Count


class SubmititLocalLauncher(Section):
    """Several jobs at once on this machine, each as SLURM would run it."""

    kind: Literal["submitit_local"]
    jobs: Count
    timeout_min: Count


class SubmititSlurmLauncher(Section):
    """Each job a job of a SLURM array."""

    kind: Literal["submitit_slurm"]
    jobs: Count
    timeout_min: Count
    partition: Name | None
    account: Name | None
    gpus_per_node: Count | None
    cpus_per_task: Count | None
    mem_gb: Count | None
    setup: list[Name]


LauncherSettings = Annotated[
    BasicLauncher | JoblibLauncher | SubmititLocalLauncher | SubmititSlurmLauncher, Field(discriminator="kind")
]
