"""Scores on the scale of the reference's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf_lightning.records import Prompt
from rlhf_lightning.rollouts.sampler import SampledResponse
from rlhf_lightning.rollouts.scoring import EnsembleScorer, StandardizedScorer

SAMPLES = [SampledResponse(Prompt("w3"), (3,), (4,) * count, "", finished=True) for count in (1, 2, 3, 6)]


def test_score_less_offset_by_spread(make_scorer: Callable[..., Any]) -> None:
    raw = make_scorer(lambda response: float(len(response.response_ids)))
    scorer = StandardizedScorer(raw, mean=2.0, std=4.0)
    # (1 - 2) / 4, and so on.
    assert scorer.score(SAMPLES).tolist() == [-0.25, 0.0, 0.25, 1.0]


def test_the_reference_samples_get_mean_0_and_deviation_1(make_scorer: Callable[..., Any]) -> None:
    raw = make_scorer(lambda response: float(len(response.response_ids)))
    scores = raw.score(SAMPLES)
    scorer = StandardizedScorer(raw, mean=float(scores.mean()), std=float(scores.std()))
    standardized = scorer.score(SAMPLES)
    torch.testing.assert_close(standardized.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(standardized.std(), torch.tensor(1.0))


def test_it_moves_with_what_it_scores_by(make_scorer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    raw = make_scorer(lambda _: 0.0)
    moved: list[torch.device] = []
    monkeypatch.setattr(raw, "to", moved.append)
    scorer = StandardizedScorer(raw, mean=0.0, std=1.0)
    assert scorer.to(torch.device("meta")) is scorer
    assert moved == [torch.device("meta")]


@pytest.fixture
def ensemble(make_scorer: Callable[..., Any]) -> Callable[..., EnsembleScorer]:
    """Two members: the length of a response, and 4."""

    def build(combine: Any, disagreement_coef: float) -> EnsembleScorer:
        members = [make_scorer(lambda response: float(len(response.response_ids))), make_scorer(lambda _: 4.0)]
        return EnsembleScorer(members, combine=combine, disagreement_coef=disagreement_coef)

    return build


def test_an_ensemble_is_its_mean_less_its_disagreement(ensemble: Callable[..., EnsembleScorer]) -> None:
    # Members say 1, 2, 3, 6 and 4: means 2.5, 3, 3.5, 5; population deviations 1.5, 1, 0.5, 1.
    assert ensemble("mean_minus_std", 0.0).score(SAMPLES).tolist() == [2.5, 3.0, 3.5, 5.0]
    assert ensemble("mean_minus_std", 2.0).score(SAMPLES).tolist() == [-0.5, 1.0, 2.5, 3.0]


def test_an_ensemble_is_its_lowest_member(ensemble: Callable[..., EnsembleScorer]) -> None:
    assert ensemble("min", 0.0).score(SAMPLES).tolist() == [1.0, 2.0, 3.0, 4.0]


def test_an_ensembles_members_move_with_it(
    ensemble: Callable[..., EnsembleScorer], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, moved = ensemble("min", 0.0), []
    for member in scorer.members:
        monkeypatch.setattr(member, "to", moved.append)
    assert scorer.to(torch.device("meta")) is scorer
    assert moved == [torch.device("meta")] * 2
