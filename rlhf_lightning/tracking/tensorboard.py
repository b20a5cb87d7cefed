"""TensorBoard event files, one folder a stage under `<run_dir>/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from matplotlib.image import imread
from pytorch_lightning.loggers import TensorBoardLogger

from rlhf_lightning.evaluation.summary import SampleRow
from rlhf_lightning.records import ScoredResponse
from rlhf_lightning.tracking.naming import Artifact


class TensorBoardSink:
    """A context in which a stage's event files are open; the `tensorboard` package must be installed."""

    def __init__(self, run_dir: Path, stage: str) -> None:
        self.logger = TensorBoardLogger(save_dir=str(run_dir), name="tensorboard", version=stage)

    def __enter__(self) -> TensorBoardSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.logger.finalize("success" if kind is None else "failed")

    def log_summary(self, figures: Mapping[str, float | str]) -> None:
        for name, value in figures.items():
            if isinstance(value, str):
                self.logger.experiment.add_text(name, value)
            else:
                self.logger.experiment.add_scalar(name, value)

    def log_objective(self, objective: float) -> None:
        self.logger.experiment.add_scalar("objective", objective)

    def log_samples(self, rows: Sequence[SampleRow]) -> None:
        for position, row in enumerate(rows):
            text = f"**prompt** {row.prompt}\n\n**before** {row.before}\n\n**after** {row.after}"
            self.logger.experiment.add_text(f"samples/{row.split}", text, global_step=position)

    def log_rollout_samples(self, iteration: int, rows: Sequence[ScoredResponse]) -> None:
        for position, row in enumerate(rows):
            text = f"**prompt** {row.prompt.plain()}\n\n**response** {row.response}\n\n**score** {row.reward:+.2f}"
            self.logger.experiment.add_text(f"sample_log/{position}", text, global_step=iteration)

    def log_plots(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self.logger.experiment.add_image(f"plots/{path.stem}", imread(path), dataformats="HWC")

    def log_input_artifact(self, artifact: Artifact) -> None:
        """Nothing to do: event files know no artifacts."""

    def log_output_artifact(self, artifact: Artifact) -> None:
        """Nothing to do, likewise."""
