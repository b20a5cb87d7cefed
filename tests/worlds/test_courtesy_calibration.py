"""The recorded judgments: that the shipped file is what its command writes, and that its labels tell something."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from rlhf_lightning.records import Message, Prompt
from rlhf_lightning.worlds.courtesy import TRAITS, gold, prompts, recorded
from rlhf_lightning.worlds.courtesy.calibration import ANNOTATOR, PAIRS, SEED, judge_pairs, main
from rlhf_lightning.worlds.courtesy.recorded import (
    TRAIT_NAMES,
    RecordedJudgment,
    preferred_under,
    recorded_judgments,
    recorded_path,
)
from rlhf_lightning.worlds.settings import AnnotatorSettings

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_writes_the_shipped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "calibration.jsonl"
    monkeypatch.setattr(sys, "argv", ["calibration", "--output", str(output)])
    main()
    assert output.read_bytes() == recorded_path().read_bytes()


def test_what_is_read_is_what_was_judged() -> None:
    assert recorded_judgments() == judge_pairs(PAIRS, SEED)


def test_reading_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("gold was called")

    for name in ("score", "judge"):
        monkeypatch.setattr(gold, name, never)
    for name in ("score", "judge"):
        monkeypatch.setattr(f"rlhf_lightning.worlds.courtesy.traits.{name}", never, raising=False)
    judgments = recorded_judgments()
    assert len(judgments) == 400
    assert preferred_under(judgments[0], {"harmless": 1.0}) in (True, False, None)
    assert not any(
        value is gold or getattr(value, "__module__", "") == gold.__name__ for value in vars(recorded).values()
    )


def test_the_traits_are_those_of_the_world() -> None:
    assert tuple(TRAITS) == TRAIT_NAMES


def test_the_annotator_is_the_one_of_the_config() -> None:
    section = yaml.safe_load((ROOT / "conf" / "data" / "courtesy.yaml").read_text(encoding="utf-8"))
    assert AnnotatorSettings(**section["annotator"]) == ANNOTATOR


def test_the_prompts_are_of_the_validation_split() -> None:
    judgments = recorded_judgments()
    assert {judgment.prompt for judgment in judgments} <= set(prompts("validation"))
    # Enough of them for a bootstrap over prompts.
    assert len({judgment.prompt for judgment in judgments}) >= 200


@pytest.mark.parametrize("name", TRAIT_NAMES)
def test_every_trait_sets_many_pairs_apart(name: str) -> None:
    apart = [judgment.traits[name] for judgment in recorded_judgments() if len(set(judgment.traits[name])) == 2]
    assert len(apart) >= 100
    # Neither place is favored: 4 standard errors of a fair coin.
    assert abs(sum(first for first, _ in apart) / len(apart) - 0.5) < 2.0 / len(apart) ** 0.5


def test_labels_are_the_worlds_own() -> None:
    """Traits as by the gold score; the preference mostly as by the gold reward, since the annotators are noisy."""
    agree = malformed = 0
    for judgment in recorded_judgments():
        scores = [gold.judge(judgment.prompt.last_turn, response) for response in judgment.responses]
        for name in TRAIT_NAMES:
            expected = tuple(not score.malformed and TRAITS[name].holds(score) for score in scores)
            assert judgment.traits[name] == expected
        agree += (scores[0].reward > scores[1].reward) == judgment.prefers_first
        malformed += sum(score.malformed for score in scores)
    assert 0.7 < agree / 400 < 0.95
    assert 0.05 < malformed / 800 < 0.12


def test_another_seed_is_another_set() -> None:
    assert judge_pairs(20, SEED + 1) != judge_pairs(20, SEED)


def judgment(**traits: tuple[bool, bool]) -> RecordedJudgment:
    prompt = Prompt((Message("user", "how do i fix the lamp ?"),))
    return RecordedJudgment(prompt, ("a", "b"), True, traits)


def test_preferred_under_weighs_the_traits() -> None:
    apart = judgment(harmless=(True, False), polite=(False, True), brief=(True, True))
    assert preferred_under(apart, {"harmless": 1.0}) is True
    assert preferred_under(apart, {"polite": 1.0}) is False
    assert preferred_under(apart, {"brief": 1.0}) is None
    assert preferred_under(apart, {}) is None
    # 1 - 1 = 0; 2 - 1 = 1; 1 - 3 = -2; the absence of politeness is asked for: 0 + 1.
    assert preferred_under(apart, {"harmless": 1.0, "polite": 1.0}) is None
    assert preferred_under(apart, {"harmless": 2.0, "polite": 1.0}) is True
    assert preferred_under(apart, {"harmless": 1.0, "polite": 3.0}) is False
    assert preferred_under(apart, {"polite": -1.0}) is True
    with pytest.raises(KeyError):
        preferred_under(apart, {"kind": 1.0})


def test_weights_that_round_still_tie() -> None:
    # As floats 0.1 + 0.2 is more than 0.3.
    level = judgment(harmless=(True, False), polite=(True, False), brief=(False, True))
    assert preferred_under(level, {"harmless": 0.1, "polite": 0.2, "brief": 0.3}) is None
