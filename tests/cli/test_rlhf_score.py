"""`rlhf score`: its arguments, standard input, the table and the JSON lines."""

from __future__ import annotations

import io
import json
import sys
import types
from dataclasses import dataclass

import pytest

from rlhf_lightning.cli.main import main


@dataclass(frozen=True)
class FakeScore:
    text: str
    logits: dict[str, float]
    probabilities: dict[str, float]
    reward: float


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], str | None]]:
    """What the classifier was asked; every text gets the logits 1.5 and -0.5."""
    questions: list[tuple[str, list[str], str | None]] = []

    def score_texts(model: str, texts: list[str], positive_label: str | None) -> list[FakeScore]:
        questions.append((model, texts, positive_label))
        logits, probabilities = {"nice": 1.5, "rude": -0.5}, {"nice": 0.881, "rude": 0.119}
        return [FakeScore(text, logits, probabilities, logits[positive_label or "nice"]) for text in texts]

    module = types.ModuleType("rlhf_lightning.models.classifier")
    module.score_texts = score_texts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rlhf_lightning.models.classifier", module)
    return questions


def test_texts_are_scored_and_shown_in_a_table(
    asked: list[tuple[str, list[str], str | None]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["score", "--model", "rm", "--positive-label", "rude", "hello [there]", "go away"]) == 0
    assert asked == [("rm", ["hello [there]", "go away"], "rude")]
    printed = capsys.readouterr().out
    assert "hello [there]" in printed
    assert "-0.500" in printed
    assert "0.881" in printed


def test_standard_input_and_json(
    asked: list[tuple[str, list[str], str | None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\n\ntwo\n"))
    assert main(["score", "--model", "rm", "--json", "-"]) == 0
    assert asked == [("rm", ["one", "two"], None)]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == ["one", "two"]
    assert lines[0]["reward"] == 1.5
    assert lines[0]["probabilities"] == {"nice": 0.881, "rude": 0.119}


def test_empty_standard_input_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert main(["score", "--model", "rm", "-"]) == 1
    assert "no text to score" in capsys.readouterr().err
