"""Lightning's Trainer, configured in the same way for every stage that trains, and its strategy and environment."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from lightning_fabric.plugins import ClusterEnvironment
from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import Callback, LambdaCallback, LearningRateMonitor, RichProgressBar
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.utils.data import DataLoader

from rlhf_lightning.algorithms.checkpoints import AtomicCheckpointIO, Checkpoints
from rlhf_lightning.algorithms.training_callbacks import DivergenceGuard, GradientNorm, OwnSignalHandlers, StepLimit
from rlhf_lightning.data.datamodules import StepDataModule
from rlhf_lightning.distributed import join, rank
from rlhf_lightning.ranks import RankInfo, rank_info
from rlhf_lightning.stages.context import StageContext, device_of
from rlhf_lightning.stages.restore import appended_files
from rlhf_lightning.stages.run_settings import TrainerSettings
from rlhf_lightning.stages.supervised import SupervisedLoop
from rlhf_lightning.stages.targets import instantiate


class Launched(ClusterEnvironment):
    """Cluster environment for Lightning in which all processes have been started already.

    So Lightning uses neither its own launcher, which replays the command line, nor its SLURM signal handler, which
    would save in the middle of an iteration.
    """

    def __init__(self, place: RankInfo) -> None:
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.world_size

    def set_world_size(self, size: int) -> None:
        del size

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        del rank

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node


def join_processes(trainer: TrainerSettings) -> None:
    """Initializes the process group of a run, unless it is initialized already or the run needs none."""
    if trainer.strategy != "single":
        join(rank_info(), on_gpu=device_of(trainer).type == "cuda")


def lightning_strategy(trainer: TrainerSettings) -> Strategy | str:
    """Lightning's strategy of that name; the process group is initialized already (`join_processes`)."""
    if trainer.strategy == "ddp":
        return DDPStrategy(forward_sync_buffers=False)
    if trainer.strategy == "fsdp":
        # A full checkpoint in one file, which can be read without the processes that wrote it.
        return ModelParallelStrategy(
            data_parallel_size=trainer.processes, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
    return "auto"


LOG_EVERY_STEPS = 10

EXPECTED = (
    # Batches are made in memory in microseconds: worker processes would only cost.
    r".*does not have many workers.*",
    r".*The number of training batches .* is smaller than the logging.*",
    # The rollout buffer is read by one process, and its length is exact.
    r".*Your `IterableDataset` has `__len__` defined.*",
    # Dropout is off on purpose, in training too: old and new log-probs must agree.
    r".*in eval mode at the start of training.*",
    # Rollout figures cover all processes' rollouts, so they are equal on every rank; the others are reduced.
    r".*It is recommended to use `self.log.*sync_dist=True.*",
    # Lightning's own use of a torch function that torch has renamed.
    r".*isinstance\(treespec, LeafSpec\).*",
)
"""Warnings that do not apply here, as regular expressions of their messages."""


def build_trainer(
    context: StageContext,
    *,
    max_epochs: int,
    accumulate: int,
    max_grad_norm: float,
    epoch_is_iteration: bool,
    models: Mapping[str, nn.Module],
    callbacks: Sequence[Callback] = (),
) -> pl.Trainer:
    """A trainer for one stage.

    It writes checkpoints to `checkpoints/STAGE/` of the run directory, from which `fit` resumes.

    Args:
        accumulate: micro-batches per optimizer step.
        max_grad_norm: gradients are clipped to this norm.
        epoch_is_iteration: figures are logged per epoch (PPO iterations) rather than every few steps.
        models: all models of the stage, by name, whose memory is counted.
        callbacks: the stage's own.
    """
    settings = context.inputs.settings
    for message in EXPECTED:
        warnings.filterwarnings("ignore", message=message)
    extra = [instantiate(entry, allow_targets=settings.allow_targets) for entry in settings.callbacks.extra]
    watching: list[Callback] = [
        OwnSignalHandlers(),
        # When models are on their devices, in their precision and, under FSDP, in shards.
        LambdaCallback(on_fit_start=lambda *_: context.memory.count(models, context.inputs.make_optimizer)),
        # Before all that log or roll out when an iteration or a step begins: that comes after the checkpoint.
        _checkpoints(context, epoch_is_iteration),
        DivergenceGuard(context.name, context.inputs.run.checkpoint_dir(context.name)),
        GradientNorm(on_step=not epoch_is_iteration),
        LearningRateMonitor(logging_interval="epoch" if epoch_is_iteration else "step"),
        *callbacks,
        *extra,
    ]
    show_progress = settings.callbacks.progress_bar and rank() == 0 and sys.stderr.isatty()
    if show_progress:
        watching.append(RichProgressBar(refresh_rate=1))
    return pl.Trainer(
        accelerator=settings.trainer.accelerator,
        devices=settings.trainer.devices,
        num_nodes=settings.trainer.nodes,
        strategy=lightning_strategy(settings.trainer),
        plugins=[Launched(rank_info()), AtomicCheckpointIO()],
        precision=settings.trainer.precision,
        deterministic=settings.trainer.deterministic,
        max_epochs=max_epochs,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=max_grad_norm,
        gradient_clip_algorithm="norm",
        callbacks=watching,
        logger=context.tracker.loggers,
        log_every_n_steps=LOG_EVERY_STEPS,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=show_progress,
        use_distributed_sampler=False,
        default_root_dir=context.inputs.run.path,
    )


def fit_supervised(
    context: StageContext,
    settings: SupervisedLoop,
    module: pl.LightningModule,
    data: StepDataModule[Any, Any],
    models: Mapping[str, nn.Module],
) -> pl.Trainer:
    """Trains for the steps of a supervised stage; returns the trainer, which holds the last logged metrics.

    Args:
        models: as `build_trainer` takes them.
    """
    trainer = build_trainer(
        context,
        max_epochs=settings.epochs,
        accumulate=data.micro_batches_per_step,
        max_grad_norm=settings.max_grad_norm,
        epoch_is_iteration=False,
        models=models,
        callbacks=[] if settings.max_steps is None else [StepLimit(settings.max_steps)],
    )
    fit(context, trainer, module, data)
    return trainer


def fit(
    context: StageContext, trainer: pl.Trainer, module: pl.LightningModule, data: LightningDataModule | DataLoader[Any]
) -> None:
    """Trains, from the stage's checkpoint if there is one."""
    trainer.fit(module, data, ckpt_path=context.checkpoint, weights_only=True)


def _checkpoints(context: StageContext, epoch_is_iteration: bool) -> Checkpoints:
    run, settings = context.inputs.run, context.inputs.settings.callbacks
    return Checkpoints(
        run.checkpoint_dir(context.name),
        appended_files(run, context.name),
        unit="iteration" if epoch_is_iteration else "step",
        every=settings.save_every if epoch_is_iteration else settings.save_every_steps,
        keep_last=settings.keep_last,
    )
