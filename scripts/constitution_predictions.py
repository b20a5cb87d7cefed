"""What each constitution was expected to do in the courtesy world, beside what a sweep over constitutions found.

    rlhf train -m sweep=constitution
    python scripts/constitution_predictions.py outputs/latest                          # the policy after RL
    python scripts/constitution_predictions.py outputs/latest --policy revision_sft    # the one before it
    python scripts/constitution_predictions.py outputs/latest --markdown               # for the docs

Every prediction is about one figure of a policy under a constitution, less that of the policy under `none` with the
same seed. The difference is a mean over seeds with the 95% interval of Student's t over the differences seed by seed.
These rules were written before there were results, and none of them may be changed because of some:

* up: holds if the interval lies above 0, does not hold if it lies below 0.
* down: the other way round.
* highest: an `up` against every constitution of the sweep. Holds if it holds against each, does not hold if it does not
  against one. What is shown is the difference to the best of the others by its mean.
* unchanged: holds if the difference is smaller than a margin; does not hold if it is not and the interval leaves out 0.
* not down: as unchanged, but a rise of any size holds too.
* Everything else is not decided: the interval spans 0, or there are too few seeds for one.

The margins: 10 points of a rate or of help, a quarter of a filler word a response. With about a hundred prompts of a
kind a rate moves by half of that between two samplings of one policy; a principle that works moves its own figure by
several times as much.

`unchanged` beside politeness leaves out rudeness (a response has one opening at most, so the one displaces the other),
and beside brevity it leaves out boilerplate, which the principle takes away with the fillers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.table import Table
from rich.text import Text

from rlhf_lightning.cli.console import show_error, stdout
from rlhf_lightning.comparison.differing_settings import differing_keys
from rlhf_lightning.comparison.reading import find_runs, read_run, short_names
from rlhf_lightning.comparison.records import Delta, Metric, Run, Values, difference, estimate, values_by_cell
from rlhf_lightning.comparison.tables import NOTHING, delta_cell, mean_cell
from rlhf_lightning.errors import ComparisonError, RlhfError
from rlhf_lightning.evaluation.summary import short_name

Expected = Literal["up", "down", "highest", "unchanged", "not down"]
Found = Literal["holds", "does not hold", "not decided", "no figures"]
Row = dict[str, str]

ARROW = " -> "
BASELINE = "none"
SAFETY = ("harmful_rate", "over_refusal_rate")
"""What every step of a pipeline is shown by: harmful compliance, and its price beside it."""


@dataclass(frozen=True)
class Prediction:
    """One figure under one constitution, and where it should go."""

    constitution: str
    figure: str
    expected: Expected


NAMES = {
    "gold_reward": "gold reward",
    "harmful_rate": "harmful compliance",
    "over_refusal_rate": "over-refusal",
    "help": "help",
    "untrue_rate": "false facts",
    "honest_unknown_rate": '"do not know" where right',
    "polite_rate": "politeness",
    "fillers": "fillers a response",
    "length": "length, tokens",
    "refusal_rate": "refusals",
}
"""Every figure that is predicted, as a table calls it."""
MARGIN = 0.1
"""Of rates and help."""
FILLERS_MARGIN = 0.25
"""Words a response."""

PREDICTIONS = (
    Prediction("harmless", "harmful_rate", "down"),
    Prediction("harmless", "over_refusal_rate", "up"),
    Prediction("helpful", "help", "up"),
    Prediction("helpful", "harmful_rate", "not down"),
    Prediction("honest", "untrue_rate", "down"),
    Prediction("honest", "honest_unknown_rate", "up"),
    Prediction("polite", "polite_rate", "up"),
    *(
        Prediction("polite", figure, "unchanged")
        for figure in ("harmful_rate", "over_refusal_rate", "help", "untrue_rate", "fillers")
    ),
    Prediction("concise", "fillers", "down"),
    *(
        Prediction("concise", figure, "unchanged")
        for figure in ("harmful_rate", "over_refusal_rate", "help", "untrue_rate", "polite_rate")
    ),
    Prediction("hhh", "gold_reward", "highest"),
    Prediction("verbose", "length", "up"),
    Prediction("verbose", "gold_reward", "down"),
    Prediction("refuse_all", "refusal_rate", "up"),
    Prediction("refuse_all", "gold_reward", "down"),
)
"""Those of the design, one row each."""


@dataclass(frozen=True)
class Sweep:
    """The finished runs of a sweep by constitution.

    Attributes:
        left_out: runs that are not finished, or lie elsewhere.
        averaged: keys beside constitution and seed that differ; runs of one seed are averaged over them.
    """

    runs: Mapping[str, tuple[Run, ...]]
    left_out: tuple[str, ...]
    averaged: tuple[str, ...]

    def values(self, constitution: str, name: str) -> Values:
        """A figure under a constitution, seed by seed; `name` as in `Run.figures`."""
        runs = self.runs.get(constitution, ())
        return values_by_cell(((), run.seed, run.figures[name]) for run in runs if name in run.figures)


def main(argv: Sequence[str]) -> int:
    """Reads the sweep and prints what was predicted and found."""
    arguments = parser().parse_args(argv)
    try:
        sweep = read_sweep(arguments.sweep)
        policy = short_name(arguments.policy)
        predictions = [*prediction_rows(sweep, policy, arguments.split)]
        tables = {
            f"Predictions, policy {policy} on {arguments.split}, against `{BASELINE}`": predictions,
            f"Steps on {arguments.split}, over seeds": [*step_rows(sweep, arguments.split)],
            f"Every seed on {arguments.split}": [*seed_rows(sweep, arguments.split)],
        }
    except RlhfError as error:
        show_error(error)
        return error.exit_code
    notes = [*note_lines(sweep, predictions)]
    if arguments.markdown:
        parts = [part for title, rows in tables.items() for part in (f"### {title}", markdown(rows))]
        sys.stdout.write("\n\n".join([*parts, "\n".join(f"- {note}" for note in notes)]) + "\n")
        return 0
    console = stdout()
    for title, rows in tables.items():
        console.print(Text(title, style="bold"), plain(rows))
    for note in notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the script."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("sweep", type=Path, metavar="SWEEP_DIR")
    arguments.add_argument("--policy", default="ppo", help="whose figures (default: ppo)")
    arguments.add_argument("--split", default="iid", help="on which prompts (default: iid)")
    arguments.add_argument("--markdown", action="store_true", help="tables for the docs")
    return arguments


def read_sweep(directory: Path) -> Sweep:
    """The runs under a directory.

    Raises:
        ComparisonError: none of them is finished under the constitution that the others are compared with.
    """
    directories = find_runs([directory]).directories
    runs = [read_run(path, name) for path, name in zip(directories, short_names(directories), strict=True)]
    finished = [run for run in runs if run.finished and "constitution.name" in run.config]
    by_name: dict[str, tuple[Run, ...]] = {}
    for run in finished:
        name = str(run.config["constitution.name"])
        by_name[name] = (*by_name.get(name, ()), run)
    if BASELINE not in by_name:
        what = f"No finished run has constitution={BASELINE}, which the others are compared with."
        raise ComparisonError(what, where=str(directory), fix="rlhf train -m sweep=constitution")
    differing = differing_keys([run.config for run in finished])
    return Sweep(
        runs=by_name,
        left_out=tuple(f"{run.name} ({run.state})" for run in runs if run not in finished),
        averaged=tuple(key for key in differing if not key.startswith("constitution.")),
    )


def prediction_rows(sweep: Sweep, policy: str, split: str) -> Iterator[Row]:
    """A row a prediction about a constitution of the sweep."""
    for prediction in PREDICTIONS:
        if prediction.constitution not in sweep.runs:
            continue
        name = f"{policy}.{split}.{prediction.figure}"
        values = sweep.values(prediction.constitution, name)
        rivals = others(sweep, prediction, name)
        deltas = {rival: difference(values, theirs) for rival, theirs in rivals.items()}
        rival = best_of(rivals) if rivals else BASELINE
        metric = metric_of(prediction.figure)
        before = mean_cell(estimate(rivals[rival]), metric) if rivals else NOTHING
        after = mean_cell(estimate(values), metric) if values else NOTHING
        against = "" if rival == BASELINE else f" ({rival})"
        yield {
            "constitution": prediction.constitution,
            "prediction": f"{NAMES[prediction.figure]} {prediction.expected}",
            f"{BASELINE} -> constitution": f"{before}{against} -> {after}",
            "difference": delta_cell(deltas.get(rival), metric),
            "found": found(prediction, [*deltas.values()]),
        }


def others(sweep: Sweep, prediction: Prediction, name: str) -> dict[str, Values]:
    """What a constitution is compared with, where there are figures of it."""
    highest = prediction.expected == "highest"
    rivals = [one for one in sweep.runs if one != prediction.constitution] if highest else [BASELINE]
    return {rival: values for rival in rivals if (values := sweep.values(rival, name))}


def best_of(rivals: Mapping[str, Values]) -> str:
    """The rival with the highest mean."""
    return max(rivals, key=lambda rival: estimate(rivals[rival]).mean)


def found(prediction: Prediction, deltas: Sequence[Delta | None]) -> Found:
    """The verdict on a prediction by the differences to all that it is compared with."""
    given = [delta for delta in deltas if delta is not None]
    if not given:
        return "no figures"
    margin = FILLERS_MARGIN if prediction.figure == "fillers" else MARGIN
    verdicts = {verdict(prediction.expected, delta, margin) for delta in given}
    order: tuple[Found, ...] = ("does not hold", "not decided", "holds")
    return next(worst for worst in order if worst in verdicts)


def verdict(expected: Expected, delta: Delta, margin: float) -> Found:
    """The verdict by one difference, as the rules above have it."""
    if delta.low is None or delta.high is None:
        return "not decided"
    if expected in ("unchanged", "not down"):
        moved = -delta.mean if expected == "not down" else abs(delta.mean)
        if moved < margin:
            return "holds"
        return "does not hold" if delta.is_clear else "not decided"
    if not delta.is_clear:
        return "not decided"
    return "holds" if (delta.mean > 0) == (expected != "down") else "does not hold"


def step_rows(sweep: Sweep, split: str) -> Iterator[Row]:
    """A row a constitution and policy: the mean over seeds, and what changed since the policy before it."""
    for constitution in sweep.runs:
        before: str | None = None
        for policy in policies_of(sweep, constitution):
            row = {"constitution": constitution, "policy": policy}
            for figure in SAFETY:
                metric = metric_of(figure)
                values = sweep.values(constitution, f"{policy}.{split}.{figure}")
                row[NAMES[figure]] = mean_cell(estimate(values), metric) if values else NOTHING
                earlier = sweep.values(constitution, f"{before}.{split}.{figure}") if before else {}
                row[f"change of {NAMES[figure]}"] = delta_cell(difference(values, earlier), metric)
            yield row
            before = policy


def seed_rows(sweep: Sweep, split: str) -> Iterator[Row]:
    """A row a run: each policy's rates with bootstrap intervals over prompts."""
    for constitution, runs in sweep.runs.items():
        for run in sorted(runs, key=lambda run: run.seed if run.seed is not None else -1):
            row = {"constitution": constitution, "seed": str(run.seed)}
            row["policies"] = ARROW.join(map(short_name, run.evaluation))
            for figure in SAFETY:
                cells = [_with_interval(by_split.get(split, {}), figure) for by_split in run.evaluation.values()]
                row[NAMES[figure]] = ARROW.join(cells)
            yield row


def policies_of(sweep: Sweep, constitution: str) -> list[str]:
    """The policies that were evaluated under a constitution, in their order."""
    return list(dict.fromkeys(short_name(policy) for run in sweep.runs[constitution] for policy in run.evaluation))


def note_lines(sweep: Sweep, predictions: Sequence[Row]) -> Iterator[str]:
    """What has to be said of the tables."""
    verdicts = [row["found"] for row in predictions]
    counts = [f"{verdicts.count(name)} {name}" for name in dict.fromkeys(sorted(verdicts))]
    seeds = {name: len({run.seed for run in runs}) for name, runs in sweep.runs.items()}
    yield f"{len(verdicts)} predictions: {', '.join(counts) or 'none of them about this sweep'}."
    yield f"Seeds: {', '.join(f'{name} {count}' for name, count in seeds.items())}."
    yield "Mean and difference ± half of the 95% interval over seeds (Student's t), differences paired by seed."
    if any(cell.endswith(" u") for row in predictions for cell in row.values()):
        yield "Marked u: fewer than two seeds in common, so the interval is Welch's, of independent means."
    absent = {one.constitution for one in PREDICTIONS} - sweep.runs.keys()
    if absent:
        yield f"No finished run under: {', '.join(sorted(absent))}."
    if sweep.averaged:
        yield f"Averaged within each seed over {', '.join(sweep.averaged)}."
    if sweep.left_out:
        yield f"Not counted: {', '.join(sweep.left_out)}."


def metric_of(figure: str) -> Metric:
    """How a figure is written."""
    styles = {"gold_reward": "signed", "help": "plain", "fillers": "plain", "length": "plain"}
    return Metric(figure, NAMES[figure], None, styles.get(figure, "percent"))


def plain(rows: Sequence[Row]) -> Table:
    """Rows for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row.values()))
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Rows for a document."""
    columns = list(rows[0]) if rows else []
    lines = [columns, ["---"] * len(columns), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _with_interval(figures: Mapping[str, Any], name: str) -> str:
    if name not in figures:
        return NOTHING
    bounds = figures.get(f"{name}_ci")
    return f"{figures[name]:.1%}" + (f" [{bounds[0]:.1%}, {bounds[1]:.1%}]" if bounds else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
