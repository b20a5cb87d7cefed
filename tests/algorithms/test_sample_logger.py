"""Some of what the policy said, now and then."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
import torch

from rlhf_lightning.algorithms.ppo_iteration import CollectedRollouts
from rlhf_lightning.algorithms.rollout_callbacks import SampleLogger
from rlhf_lightning.records import Message, Prompt, ScoredResponse
from rlhf_lightning.rollouts.buffer import Rollout
from rlhf_lightning.rollouts.sampler import SampledResponse

METRICS = {"objective/score": 0.5, "objective/kl": 1.25, "objective/entropy": 2.0, "rollout/length": 7.0}


class Scores:
    """All that the sample log reads of a rollout."""

    scores = torch.tensor([0.5, -1.0, 2.0])


COLLECTED = CollectedRollouts(
    cast(Rollout, Scores()),
    (
        SampledResponse(Prompt("why ?"), (3,), (4, 1), "because ☂", finished=True),
        SampledResponse(Prompt((Message("user", "hi"),)), (5,), (6,), "well", finished=False),
        SampledResponse(Prompt("how ?"), (3,), (4, 1), "so", finished=True),
    ),
    METRICS,
)


def unheard(iteration: int, rows: Sequence[ScoredResponse]) -> None:
    """Nobody listens."""


def test_the_sample_log_is_written_every_so_many_iterations(tmp_path: Path) -> None:
    sample_log = SampleLogger(tmp_path / "sample_log.jsonl", every=2, samples=1, report=unheard)
    for iteration in range(5):
        assert sample_log(iteration, COLLECTED) == {}
    lines = (tmp_path / "sample_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 2, 4]


def test_an_entry_says_what_was_asked_answered_and_scored(tmp_path: Path) -> None:
    SampleLogger(tmp_path / "sample_log.jsonl", every=1, samples=2, report=unheard)(0, COLLECTED)
    text = (tmp_path / "sample_log.jsonl").read_text(encoding="utf-8")
    assert "because ☂" in text
    first, second = (json.loads(line) for line in text.splitlines())
    assert first == {
        "iteration": 0,
        "prompt": {"text": "why ?"},
        "response": "because ☂",
        "reward": 0.5,
        "finished": True,
    }
    assert second["prompt"] == {"text": [{"role": "user", "content": "hi"}]}
    assert (second["reward"], second["finished"]) == (-1.0, False)


def test_the_log_gets_one_line_of_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rlhf_lightning.algorithms.rollout_callbacks"):
        SampleLogger(tmp_path / "sample_log.jsonl", every=5, samples=1, report=unheard)(10, COLLECTED)
    assert caplog.messages == ["Iteration 10: score +0.50, KL 1.25, entropy 2.00, length 7.0."]


def test_each_entry_is_reported(tmp_path: Path) -> None:
    told: list[tuple[int, list[str]]] = []
    sample_log = SampleLogger(
        tmp_path / "sample_log.jsonl",
        every=2,
        samples=2,
        report=lambda iteration, rows: told.append((iteration, [row.response for row in rows])),
    )
    for iteration in range(3):
        sample_log(iteration, COLLECTED)
    assert told == [(0, ["because ☂", "well"]), (2, ["because ☂", "well"])]
