"""Calibration of a judge: agreement with human labels, compared with rules that do not read responses; its report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rlhf_lightning.evaluation.judge_bias import (
    BASELINES,
    JudgedPair,
    JudgedResponse,
    baseline_scores,
    length_bias,
    position_bias,
    self_preference,
)
from rlhf_lightning.evaluation.preference_accuracy import Floats, expected_calibration_error, reliability_bins, wins
from rlhf_lightning.evaluation.statistics import Estimate, bootstrap_mean, bootstrap_statistic, paired_difference

Figures = dict[str, Any]
Judged = TypeVar("Judged", JudgedPair, JudgedResponse)

FEWEST_PROMPTS = 20
"""Over fewer a bootstrap over prompts has no meaning: two pairs, both right, would have the interval [1, 1]."""

RIGHT_ENOUGH = 0.9
"""A judge that is surely right on so many pairs is worth training on even where a rule is as right as it is: then that
rule is what was asked for (a constitution that wants every request refused) and no way around it."""


def calibration_figures(
    pairs: Sequence[JudgedPair],
    by_principle: Sequence[JudgedPair],
    responses: Sequence[JudgedResponse],
    bootstrap_samples: int,
    seed: int,
) -> Figures:
    """All figures of a judge: of the labels that it gives, and principle by principle.

    Args:
        pairs: with the labels themselves, over all the principles that the judge goes by.
        by_principle: pairs with what it says under one principle alone.
        responses: the single verdicts of a pointwise judge, where people gave such verdicts too.

    Returns:
        What `pair_figures` says of the labels; `pointwise`: what `response_figures` says of all verdicts; `principles`:
        by id, `pair_figures` of its pairs and, under `pointwise`, `response_figures` of its verdicts. Parts without
        data are left out.
    """
    figures = pair_figures(pairs, bootstrap_samples, seed)
    if responses:
        figures["pointwise"] = response_figures(responses, bootstrap_samples, seed)
    principles: dict[str, Figures] = {}
    for name, own_pairs in _grouped(by_principle).items():
        principles[name] = pair_figures(own_pairs, bootstrap_samples, seed)
    for name, own_responses in _grouped(responses).items():
        principles.setdefault(name, {})["pointwise"] = response_figures(own_responses, bootstrap_samples, seed)
    return figures | {"principles": principles}


def _grouped(judged: Sequence[Judged]) -> dict[str, list[Judged]]:
    """By principle, in order of appearance."""
    groups: dict[str, list[Judged]] = {}
    for one in judged:
        groups.setdefault(one.principle or "", []).append(one)
    return groups


def pair_figures(pairs: Sequence[JudgedPair], bootstrap_samples: int, seed: int) -> Figures:
    """Figures of a judge's labels on pairs.

    All intervals resample prompts whole. The accuracy and what follows it is over the pairs that both, people and
    judge, have a label for; a tie of the judge counts half. What is not defined (the accuracy where nothing was
    answered) is left out.

    Returns:
        Counts: `pairs`, `labeled` (by people), `answered` (by the judge), `abstained` (it answered, but gave no
        label), `parse_failures` (pairs without a label for want of an answer), `compared`, `prompts` (of those
        compared). `parse_failure_rate` (of questions) and `mass` (of the options, mean).
        `accuracy` (agreement with people), `kappa` (Cohen 1960), `brier`, each with `_ci`, and `ece`; `reliability`:
        the bins of its plot.
        `baselines`: by name `accuracy` (undecided pairs count half) with `accuracy_ci`, `coverage`, and
        `decided_accuracy`. `best_baseline`, `lift` (accuracy above it, pair by pair) with `lift_ci`; `beats_baselines`:
        whether the lift is surely positive; `worth_training_on`: whether it is, or nearly all labels are right.
        What `position_bias`, `length_bias` and `self_preference` return, and the `verdict` in words.
    """
    compared = [pair for pair in pairs if pair.human_prefers_a is not None and pair.probability is not None]
    figures = _answer_figures(pairs, bootstrap_samples, seed)
    figures |= {"compared": len(compared), "prompts": len({pair.group for pair in compared})}
    if compared:
        figures |= _agreement_figures(compared, bootstrap_samples, seed)
    figures |= position_bias(pairs, bootstrap_samples, seed)
    figures |= length_bias(compared, bootstrap_samples, seed)
    figures |= self_preference(compared, bootstrap_samples, seed)
    figures["beats_baselines"] = figures["prompts"] >= FEWEST_PROMPTS and figures["lift_ci"][0] > 0.0
    figures["worth_training_on"] = figures["beats_baselines"] or (
        figures["prompts"] >= FEWEST_PROMPTS and figures["accuracy_ci"][0] >= RIGHT_ENOUGH
    )
    figures["verdict"] = verdict(figures)
    return figures


def response_figures(responses: Sequence[JudgedResponse], bootstrap_samples: int, seed: int) -> Figures:
    """Figures of a pointwise judge's single verdicts.

    Returns:
        `responses`, `answered`, `parse_failure_rate`; `mass`, `human_yes_rate`, `yes_rate`, `accuracy` and
        `balanced_accuracy` (the mean of its accuracies on what people said yes and no to), each with `_ci`. A
        probability of exactly one half is half right. What is not defined is left out.
    """
    answered = [response for response in responses if response.probability is not None]
    yes = np.asarray(wins(np.asarray([response.probability or 0.0 for response in answered]) - 0.5))
    truth = np.asarray([float(response.human_yes) for response in answered])
    right = yes * truth + (1.0 - yes) * (1.0 - truth)
    groups = [response.group for response in answered]

    def balanced(weights: Floats) -> Floats:
        sides = [_weighted_mean(right, weights * side) for side in (truth, 1.0 - truth)]
        return (sides[0] + sides[1]) / 2.0

    mass = bootstrap_mean(
        [response.mass for response in responses], bootstrap_samples, seed, [response.group for response in responses]
    )
    return {
        "responses": len(responses),
        "answered": len(answered),
        "parse_failure_rate": 1.0 - len(answered) / len(responses),
        **_figure("mass", mass),
        **_figure("human_yes_rate", bootstrap_mean(truth.tolist(), bootstrap_samples, seed, groups)),
        **_figure("yes_rate", bootstrap_mean(yes.tolist(), bootstrap_samples, seed, groups)),
        **_figure("accuracy", bootstrap_mean(right.tolist(), bootstrap_samples, seed, groups)),
        **_figure("balanced_accuracy", bootstrap_statistic(balanced, groups, bootstrap_samples, seed)),
    }


def _answer_figures(pairs: Sequence[JudgedPair], samples: int, seed: int) -> Figures:
    missing = [pair for pair in pairs if pair.probability is None]
    questions, unanswered = (sum(getattr(pair, name) for pair in pairs) for name in ("questions", "unanswered"))
    failed = sum(pair.unanswered > 0 for pair in missing)
    mass = bootstrap_mean([pair.mass for pair in pairs], samples, seed, [pair.group for pair in pairs])
    return {
        "pairs": len(pairs),
        "labeled": sum(pair.human_prefers_a is not None for pair in pairs),
        "answered": len(pairs) - len(missing),
        "abstained": len(missing) - failed,
        "parse_failures": failed,
        **({"parse_failure_rate": unanswered / questions} if questions else {}),
        **_figure("mass", mass),
    }


def _agreement_figures(pairs: Sequence[JudgedPair], samples: int, seed: int) -> Figures:
    groups = [pair.group for pair in pairs]
    human = np.asarray([1.0 if pair.human_prefers_a else 0.0 for pair in pairs])
    said = np.asarray([pair.probability for pair in pairs], dtype=np.float64)
    sign = 2.0 * human - 1.0
    right = wins(sign * (said - 0.5))
    chosen = np.asarray(wins(said - 0.5))

    def kappa(weights: Floats) -> Floats:
        agreed, by_judge, by_people = (_weighted_mean(values, weights) for values in (np.asarray(right), chosen, human))
        by_chance = by_judge * by_people + (1.0 - by_judge) * (1.0 - by_people)
        return np.divide(agreed - by_chance, 1.0 - by_chance, out=np.full_like(agreed, np.nan), where=by_chance < 1.0)

    given = np.where(human == 1.0, said, 1.0 - said)
    baselines, won = {}, {}
    for name, scores in baseline_scores(pairs).items():
        won[name] = wins(sign * scores)
        decided = scores != 0.0
        baselines[name] = {
            **_figure("accuracy", bootstrap_mean(won[name], samples, seed, groups)),
            "coverage": float(decided.mean()),
            **({"decided_accuracy": float(np.asarray(won[name])[decided].mean())} if decided.any() else {}),
        }
    best = max(baselines, key=lambda name: baselines[name]["accuracy"])
    return {
        **_figure("accuracy", bootstrap_mean(right, samples, seed, groups)),
        **_figure("kappa", bootstrap_statistic(kappa, groups, samples, seed)),
        **_figure("brier", bootstrap_mean(((said - human) ** 2).tolist(), samples, seed, groups)),
        "ece": expected_calibration_error(given),
        "reliability": [
            {"confidence": confidence, "accuracy": accuracy, "pairs": count}
            for confidence, accuracy, count in reliability_bins(given)
        ],
        "baselines": baselines,
        "best_baseline": best,
        **_figure("lift", paired_difference(right, won[best], samples, seed, groups)),
    }


def verdict(figures: Figures) -> str:
    """One-sentence summary of the figures of `pair_figures`."""
    if not figures["labeled"]:
        return f"Not measured: people have no preference in any of the {figures['pairs']} pairs."
    if not figures["compared"]:
        return (
            f"No labels: of {figures['pairs']} pairs the judge left {figures['parse_failures']} without an answer and "
            f"{figures['abstained']} undecided."
        )
    baseline = BASELINES[figures["best_baseline"]]
    measured = (
        f"right on {_percent(figures, 'accuracy')} of {figures['compared']} pairs; “{baseline}” is right on "
        f"{figures['baselines'][figures['best_baseline']]['accuracy']:.1%}."
    )
    low, high = figures["accuracy_ci"]
    if figures["prompts"] < FEWEST_PROMPTS:
        return f"Too few to tell ({figures['prompts']} prompts, {FEWEST_PROMPTS} are needed): {measured}"
    if figures["beats_baselines"]:
        return f"Better than every trivial baseline: {measured}"
    if figures["worth_training_on"]:
        return f"As right as a rule that is right itself, so that rule is what is asked for: {measured}"
    if high < 0.5:
        return f"Worse than chance: {measured} Its options are the wrong way round, or one of its biases decides."
    if low <= 0.5:
        return f"At chance: {measured} Nothing can be learned from its labels."
    return f"No better than a trivial baseline: {measured} Its labels hold no more than that rule does."


def _percent(figures: Figures, name: str) -> str:
    low, high = figures[f"{name}_ci"]
    return f"{figures[name]:.1%} [{low:.1%}, {high:.1%}]"


def _figure(name: str, estimate: Estimate) -> Figures:
    """Empty where it is not defined."""
    return {} if np.isnan(estimate.mean) else {name: estimate.mean, f"{name}_ci": estimate.interval}


def _weighted_mean(values: Floats, weights: Floats) -> Floats:
    """(observations,), (resamples, observations) -> (resamples,); nan where nothing has weight."""
    total = weights.sum(axis=1)
    means: Floats = np.divide(weights @ values, total, out=np.full_like(total, np.nan), where=total > 0.0)
    return means


Reported = Mapping[str, Any]

INTERVAL = "95% interval"
REPORT, PLOT = "calibration.md", "reliability.png"


@dataclass(frozen=True, slots=True)
class Section:
    """A table of the report; all columns but the first hold figures."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def render_calibration(figures: Reported) -> RenderableType:
    """The calibration for the terminal.

    Args:
        figures: as `judge_calibration.calibration_figures` returns them, and whose they are: `judge`, `mode` and
            `constitution`.
    """
    parts: list[RenderableType] = [
        Text(_heading(figures), style="bold"),
        Text(figures["verdict"], style="green" if figures["worth_training_on"] else "yellow"),
    ]
    for section in _sections(figures):
        table = Table(title=section.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number, column in enumerate(section.columns):
            table.add_column(column, justify="right" if number else "left")
        for row in section.rows:
            table.add_row(*map(Text, row))
        parts.append(table)
    return Group(*parts)


def write_calibration(figures: Reported, directory: Path, *, draw: bool) -> None:
    """Writes `calibration.md` and, if it is wanted and there is something to draw, `reliability.png` beside it."""
    drawn = _drawn(figures, directory / PLOT) if draw else None
    lines = [f"# {_heading(figures)}", "", f"**{figures['verdict']}**", ""]
    if drawn is not None:
        lines += [f"![Confidence against accuracy, and accuracy beside trivial baselines]({PLOT})", ""]
    for section in _sections(figures):
        lines += [f"## {section.title}", "", *_markdown(section), ""]
    (directory / REPORT).write_text("\n".join(lines), encoding="utf-8")


def _drawn(figures: Reported, path: Path) -> Path | None:
    from rlhf_lightning.evaluation.plots.bars import judge_reliability  # matplotlib takes a second

    return judge_reliability(figures, path)


def _heading(figures: Reported) -> str:
    return f"Judge {figures['judge']}, {figures['mode']}, under constitution {figures['constitution']}"


def _sections(figures: Reported) -> list[Section]:
    """The tables that have rows."""
    principles: Mapping[str, Reported] = figures["principles"]
    pairs = {name: part for name, part in principles.items() if "pairs" in part}
    verdicts = {name: part["pointwise"] for name, part in principles.items() if "pointwise" in part}
    if "pointwise" in figures:
        verdicts["all"] = figures["pointwise"]
    sections = [
        Section("Labels", ("figure", "value", INTERVAL), list(_label_rows(figures))),
        Section(
            "Trivial baselines",
            ("rule", "right", INTERVAL, "decides", "right where it does"),
            list(_baseline_rows(figures.get("baselines", {}))),
        ),
        Section("Biases", ("figure", "value", INTERVAL), list(_bias_rows(figures))),
        Section(
            "Principle by principle",
            ("principle", "pairs", "right", INTERVAL, "best baseline", "lift, points", INTERVAL, "mass"),
            list(_principle_rows(pairs)),
        ),
        Section(
            "Yes or no to single responses",
            ("principle", "responses", "yes, people", "yes, judge", "right, balanced", INTERVAL, "mass"),
            list(_verdict_rows(verdicts)),
        ),
    ]
    return [section for section in sections if section.rows]


def _label_rows(figures: Reported) -> Iterator[tuple[str, ...]]:
    yield "pairs", str(figures["pairs"]), ""
    yield "with a preference of people", str(figures["labeled"]), ""
    yield "with a label of the judge", str(figures["answered"]), ""
    yield "undecided (abstained)", str(figures["abstained"]), ""
    yield "unanswered (too little probability on the options)", str(figures["parse_failures"]), ""
    yield "compared: both have one", f"{figures['compared']} on {figures['prompts']} prompts", ""
    yield "parse failures, of all questions", _shown_percent(figures, "parse_failure_rate"), ""
    yield "probability of the options together", *_both(figures, "mass")
    yield "right: agrees with people", *_both(figures, "accuracy")
    yield "lift over the best baseline, points", *_both(figures, "lift", "points")
    yield "Cohen's kappa", *_both(figures, "kappa", "plain")
    yield "Brier score", *_both(figures, "brier", "plain")
    yield "expected calibration error", _written(figures["ece"], "plain") if "ece" in figures else "-", ""


def _baseline_rows(baselines: Mapping[str, Reported]) -> Iterator[tuple[str, ...]]:
    for name, one in baselines.items():
        yield (
            BASELINES[name],
            *_both(one, "accuracy"),
            _shown_percent(one, "coverage"),
            _shown_percent(one, "decided_accuracy"),
        )


def _bias_rows(figures: Reported) -> Iterator[tuple[str, ...]]:
    if "first_slot_rate" in figures:
        yield "position: names the response shown first (50%: no bias)", *_both(figures, "first_slot_rate")
    if "same_slot_rate" in figures:
        text = f"position: names the same place in both orders, of {figures['both_orders']} pairs"
        yield text, *_both(figures, "same_slot_rate")
    if "length_bias" in figures:
        yield "length: odds of choosing a response twice as long (x1: no bias)", *_both(figures, "length_bias", "odds")
    if "self_preference" in figures:
        text = f"self: prefers its own model's response more than people, points, of {figures['own_pairs']} pairs"
        yield text, *_both(figures, "self_preference", "points")


def _principle_rows(principles: Mapping[str, Reported]) -> Iterator[tuple[str, ...]]:
    for name, part in principles.items():
        best = "-"
        if "best_baseline" in part:
            rule = part["best_baseline"]
            best = f"{rule.replace('_', ' ')} {_shown_percent(part['baselines'][rule], 'accuracy')}"
        yield (
            name,
            str(part["compared"]),
            *_both(part, "accuracy"),
            best,
            *_both(part, "lift", "points"),
            _shown_percent(part, "mass"),
        )


def _verdict_rows(verdicts: Mapping[str, Reported]) -> Iterator[tuple[str, ...]]:
    for name, one in verdicts.items():
        rates = (_shown_percent(one, "human_yes_rate"), _shown_percent(one, "yes_rate"))
        yield name, str(one["answered"]), *rates, *_both(one, "balanced_accuracy"), _shown_percent(one, "mass")


def _both(figures: Reported, name: str, style: str = "percent") -> tuple[str, str]:
    """A figure and its interval; dashes where it is not defined."""
    if name not in figures:
        return "-", "-"
    low, high = (_written(bound, style) for bound in figures[f"{name}_ci"])
    return _written(figures[name], style), f"[{low}, {high}]"


def _shown_percent(figures: Reported, name: str) -> str:
    return _written(figures[name], "percent") if name in figures else "-"


def _written(value: float, style: str) -> str:
    match style:
        case "percent":
            return f"{value:.1%}"
        case "points":
            return f"{100.0 * value:+z.1f}"
        case "odds":
            return f"x{math.exp(value):.2f}"
        case _:
            return f"{value:z.3f}"


def _markdown(section: Section) -> list[str]:
    rule = ["---", *("---:" for _ in section.columns[1:])]
    return [_row(section.columns), _row(rule), *map(_row, section.rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
