"""Log of sampled rollouts during training."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rlhf_lightning.distributed import rank
from rlhf_lightning.records import ScoredCompletion
from rlhf_lightning.rollouts.collector import Collected

logger = logging.getLogger(__name__)


class SampleDiary:
    """Writes some rollouts to a jsonl file and one line of metrics to the log, every few iterations.

    Args:
        path: appended to.
        every: iterations between entries.
        samples: rollouts per entry.
        report: gets each entry as well: (iteration, rollouts).
    """

    def __init__(
        self, path: Path, *, every: int, samples: int, report: Callable[[int, Sequence[ScoredCompletion]], None]
    ) -> None:
        self.path = path
        self.every = every
        self.samples = samples
        self.report = report

    def __call__(self, iteration: int, collected: Collected) -> dict[str, float]:
        if iteration % self.every == 0 and rank() == 0:
            self._write(iteration, collected)
            figures = collected.metrics
            logger.info(
                "Iteration %d: score %+.2f, KL %.2f, entropy %.2f, length %.1f.",
                iteration,
                figures["objective/score"],
                figures["objective/kl"],
                figures["objective/entropy"],
                figures["rollout/length"],
            )
        return {}

    def _write(self, iteration: int, collected: Collected) -> None:
        scores = collected.rollout.scores.tolist()
        scored = [
            ScoredCompletion(completion.prompt, completion.reply, score, completion.finished)
            for completion, score in zip(collected.completions[: self.samples], scores, strict=False)
        ]
        with self.path.open("a", encoding="utf-8") as file:
            for entry in scored:
                file.write(json.dumps({"iteration": iteration, **asdict(entry)}, ensure_ascii=False) + "\n")
        self.report(iteration, scored)
