"""The report on a judge: what the tables say, that nothing needs figures that are not there, and the plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread
from rich.console import Console

from rlhf_lightning.evaluation.judge_bias import JudgedPair, JudgedResponse
from rlhf_lightning.evaluation.judge_calibration import calibration_figures, render_calibration, write_calibration
from rlhf_lightning.evaluation.plots import judge_reliability

WHOSE = {"judge": "org/tiny", "mode": "pairwise", "constitution": "hhh"}


def judged(count: int, principle: str | None = None, answered: bool = True) -> list[JudgedPair]:
    """Pairs of which the judge is right on three in four, and shows a taste for the first place and for its own."""
    pairs = []
    for index in range(count):
        human = index % 2 == 0
        said = 0.7 if human == (index % 4 != 0) else 0.3
        pairs.append(
            JudgedPair(
                group=index,
                responses=("x" * (index % 7 + 1), "x" * (index % 5 + 1)),
                human_prefers_a=human,
                probability=said if answered else None,
                principle=principle,
                questions=2,
                unanswered=0 if answered else 2,
                mass=0.95 if answered else 0.01,
                as_asked=(said + 0.2, said - 0.2) if answered else (None, None),
                own="a" if index % 3 else "b",
            )
        )
    return pairs


def figures(count: int = 80, answered: bool = True) -> dict[str, Any]:
    responses = [JudgedResponse(index, "no|harm", index % 2 == 0, 0.9, 0.99) for index in range(10)]
    by_principle = judged(40, "no|harm") + judged(30, "unheard", answered=False)
    return WHOSE | calibration_figures(judged(count, answered=answered), by_principle, responses, 200, seed=0)


def terminal(shown: dict[str, Any], width: int = 150) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(render_calibration(shown))
    return capture.get()


def test_the_terminal_shows_every_part() -> None:
    text = terminal(figures())
    assert "Judge org/tiny, pairwise, under constitution hhh" in text
    assert "Better than every trivial baseline: right on 75.0%" in text
    for part in ("Labels", "Trivial baselines", "Biases", "Principle by principle", "Yes or no to single responses"):
        assert f"\n{part}" in text
    assert "the shorter response" in text
    assert "of 80 pairs" in text
    assert "x1: no bias" in text


def test_the_markdown_has_the_figures(tmp_path: Path) -> None:
    shown = figures()
    write_calibration(shown, tmp_path, draw=True)
    lines = (tmp_path / "calibration.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Judge org/tiny, pairwise, under constitution hhh"
    assert lines[2] == f"**{shown['verdict']}**"
    assert "](reliability.png)" in lines[4]
    low, high = (f"{bound:.1%}" for bound in shown["accuracy_ci"])
    assert f"| right: agrees with people | 75.0% | [{low}, {high}] |" in lines
    assert f"| expected calibration error | {shown['ece']:.3f} |  |" in lines
    # A bar in a name would be a column of its own.
    assert any(line.startswith("| no\\|harm | 40 | 75.0% | [") for line in lines)
    # The judge said yes to all ten, people to half.
    assert any(
        line.startswith("| no\\|harm | 10 | 50.0% | 100.0% | 50.0% | [50.0%, 50.0%] | 99.0% |") for line in lines
    )
    # A principle that was never answered.
    assert "| unheard | 0 | - | - | - | - | - | 1.0% |" in lines
    tables = [line for line in lines if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {4, 6, 8, 9}


def test_without_the_picture_the_report_names_none(tmp_path: Path) -> None:
    write_calibration(figures(), tmp_path, draw=False)
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.md"]
    assert "reliability" not in (tmp_path / "calibration.md").read_text(encoding="utf-8")


def test_a_judge_that_never_answers_is_reported_without_a_plot(tmp_path: Path) -> None:
    shown = figures(answered=False)
    write_calibration(shown, tmp_path, draw=True)
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.md"]
    text = (tmp_path / "calibration.md").read_text(encoding="utf-8")
    assert "**No labels: of 80 pairs the judge left 80 without an answer and 0 undecided.**" in text
    assert "| right: agrees with people | - | - |" in text
    assert "## Trivial baselines" not in text
    assert "without an answer" in terminal(shown)


def test_names_are_not_markup() -> None:
    assert "Judge [bold]me[/bold], pairwise" in terminal(figures() | {"judge": "[bold]me[/bold]"})


@pytest.mark.parametrize("count", [1, 80])
def test_the_plot_is_drawn(tmp_path: Path, count: int) -> None:
    path = judge_reliability(figures(count), tmp_path / "plots" / "reliability.png")
    assert path == tmp_path / "plots" / "reliability.png"
    image = imread(path)
    # 9.6 by 3.9 inches at 150 dots.
    assert image.shape[:2] == (585, 1440)
    assert (image[..., :3] < 0.99).any(axis=-1).mean() > 0.01


def test_nothing_to_draw_leaves_no_file(tmp_path: Path) -> None:
    assert judge_reliability(figures(answered=False), tmp_path / "reliability.png") is None
    assert list(tmp_path.iterdir()) == []
