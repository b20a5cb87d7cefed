"""A report in W&B about a sweep: what differs, learning curves, gold against KL, parallel coordinates.

    python scripts/wandb_report.py outputs/multirun/DATE/TIME              # needs `wandb login` and the extra
    python scripts/wandb_report.py outputs/latest --dry-run                # prints the request as JSON, sends nothing
    python scripts/wandb_report.py outputs/latest --entity my_team --project my_project

Needs `pip install 'rlhf-lightning[wandb-workspaces]'`. The sweep's runs must be in W&B: those that were logged offline
are uploaded with `wandb sync` first.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_lightning.comparison.differing_settings import SEED, differing_keys
from rlhf_lightning.comparison.reading import find_runs, read_run
from rlhf_lightning.comparison.records import Run
from rlhf_lightning.errors import ComparisonError, RlhfError
from rlhf_lightning.tracking.history_file import EPISODES

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report, Runset
    from wandb_workspaces.reports.v2.interface import LinePlot, PanelGrid

CURVES = (
    ("objective/score", "Proxy reward"),
    ("objective/gold", "Gold reward"),
    ("objective/kl", "KL to the reference, nats a response"),
    ("objective/entropy", "Entropy, nats a token"),
    ("rollout/length", "Response length, tokens"),
    ("value/explained_variance", "Explained variance of the critic"),
)
"""What is drawn of PPO, over episodes."""
COORDINATES = ("proxy_reward", "gold_reward", "kl")
"""What parallel coordinates end in, beside the settings that differ."""


@dataclass(frozen=True)
class Sweep:
    """What W&B needs to know of a sweep to find its runs and to lay them side by side.

    Attributes:
        entity: None for the user's default.
        group: W&B's name for all runs of the sweep.
        keys: dotted config keys that differ between jobs.
        seeds: how many there are.
        last_stage: whose run knows the final figures.
        figures: names of final figures in its summary, by what they are: `gold_reward` -> `ppo/iid/gold_reward`.
    """

    directory: Path
    entity: str | None
    project: str
    group: str
    keys: tuple[str, ...]
    seeds: int
    last_stage: str
    figures: dict[str, str]


def read_sweep(directory: Path, entity: str | None, project: str | None) -> Sweep:
    """A sweep from its run directories.

    Raises:
        ComparisonError: there is no run, or none was logged to W&B.
    """
    runs = [read_run(path, path.name) for path in find_runs([directory]).directories]
    identities = [
        json.loads(path.read_text(encoding="utf-8"))
        for run in runs
        for path in (run.directory / "wandb").glob("*.json")
    ]
    if not identities:
        raise ComparisonError(
            "No run of this sweep was logged to W&B.",
            where=str(directory),
            fix="run the sweep with logger=wandb, or compare it without W&B: rlhf compare",
        )
    filed = identities[0]
    return Sweep(
        directory=directory.resolve(),
        entity=entity or filed["entity"],
        project=project or filed["project"],
        group=filed["group"],
        keys=tuple(differing_keys([run.config for run in runs])),
        seeds=len({run.seed for run in runs}),
        last_stage=str(runs[0].config["pipeline.stages"][-1]),
        figures=next((final for run in runs if (final := final_figures(run))), {}),
    )


def final_figures(run: Run) -> dict[str, str]:
    """The names of a run's final figures in W&B: of the policy evaluated last, on the first split that is reported."""
    evaluation = run.metrics.get("evaluate") or {}
    if not evaluation:
        return {"proxy_reward": "score", "kl": "kl"} if "ppo" in (run.metrics.get("stages") or {}) else {}
    policy, by_split = list(evaluation.items())[-1]
    split = next((name for name in by_split if name != "validation"), next(iter(by_split)))
    return {name: f"{policy}/{split}/{name}" for name in COORDINATES if name in by_split[split]}


def build_report(sweep: Sweep, entity: str) -> Report:
    """The report, not yet saved.

    Args:
        entity: who owns it; empty for a report that is not to be sent.
    """
    from wandb_workspaces.reports.v2 import interface as reports

    told = ", ".join(f"`{key}`" for key in sweep.keys) or "nothing but the seed"
    return reports.Report(
        project=sweep.project,
        entity=entity,
        title=f"Sweep {sweep.group}"[:128],
        description=f"What differs: {told}. Made from {sweep.directory.name} by scripts/wandb_report.py.",
        width="fluid",
        blocks=[
            reports.H1("Where it ends"),
            outcome(sweep, entity),
            reports.H1("How it gets there"),
            curves(sweep, entity),
        ],
    )


def outcome(sweep: Sweep, entity: str) -> PanelGrid:
    """The last stage's runs: a table of the keys that differ, best first, gold against KL, parallel coordinates."""
    from wandb_workspaces.reports.v2 import interface as reports

    figures, panels = sweep.figures, []
    reward = figures.get("gold_reward") or figures.get("proxy_reward")
    if reward and "kl" in figures:
        kind = "Gold" if "gold_reward" in figures else "Proxy"
        panels.append(
            reports.ScatterPlot(
                title=f"{kind} reward against KL to the reference",
                x=reports.SummaryMetric(figures["kl"]),
                y=reports.SummaryMetric(reward),
                layout=reports.Layout(0, 0, 12, 8),
            )
        )
    columns = [reports.Config(key) for key in sweep.keys]
    columns += [reports.Config(SEED)] if sweep.seeds > 1 else []
    ends = [reports.SummaryMetric(name) for name in (*figures.values(), "objective")]
    panels.append(
        reports.ParallelCoordinatesPlot(
            title="Settings and where they lead",
            columns=[reports.ParallelCoordinatesPlotColumn(metric=metric) for metric in (*columns, *ends)],
            layout=reports.Layout(12, 0, 12, 8),
        )
    )
    panels.append(reports.RunComparer(diff_only="split", layout=reports.Layout(0, 8, 24, 8)))
    return reports.PanelGrid(runsets=[runset(sweep, entity, sweep.last_stage, by_objective=True)], panels=panels)


def curves(sweep: Sweep, entity: str) -> PanelGrid:
    """PPO's runs over episodes; where only one key differs, seeds are drawn as a mean and its spread."""
    from wandb_workspaces.reports.v2 import interface as reports

    grouped: dict[str, Any] = {}
    if len(sweep.keys) == 1 and sweep.seeds > 1:
        grouped = {"groupby": reports.Config(sweep.keys[0]), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
    panels: list[LinePlot] = [
        reports.LinePlot(
            title=title,
            x=EPISODES,
            y=[metric],
            title_x="episodes",
            layout=reports.Layout(8 * (number % 3), 6 * (number // 3), 8, 6),
            **grouped,
        )
        for number, (metric, title) in enumerate(CURVES)
    ]
    return reports.PanelGrid(runsets=[runset(sweep, entity, "ppo")], panels=panels)


def runset(sweep: Sweep, entity: str, stage: str, by_objective: bool = False) -> Runset:
    """The runs of one stage of the sweep, and which columns their table has."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports.v2 import interface as reports

    settings = [f"config:{column(key)}" for key in (*sweep.keys, SEED)]
    figures = [f"summary:{name}" for name in (*sweep.figures.values(), "objective")] if by_objective else []
    shown = ["run:displayName", "run:state", *settings, *figures]
    order = reports.OrderBy(reports.SummaryMetric("objective")) if by_objective else reports.OrderBy("CreatedTimestamp")
    return reports.Runset(
        entity=entity,
        project=sweep.project if entity else "",
        name=f"{stage} of {sweep.group}",
        filters=expr.And(expr.Metric("Group") == sweep.group, expr.Metric("JobType") == stage),
        order=[order],
        pinned_columns=shown[:1],
        visible_columns=shown,
        column_order=shown,
        lock_columns=True,
    )


def column(key: str) -> str:
    """A dotted config key as W&B's tables address it: `kl.coef` is `kl.value.coef`."""
    section, dot, rest = key.partition(".")
    return f"{section}.value{dot}{rest}"


def request(sweep: Sweep) -> dict[str, Any]:
    """What saving the report would send. Only the server knows its number of the project, which is left out."""
    model = build_report(sweep, entity="")._to_model()
    return {
        "operation": "upsertView",
        "entityName": sweep.entity,
        "projectName": sweep.project,
        "displayName": model.display_name,
        "description": model.description,
        "type": "runs",
        "spec": json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }


def save(sweep: Sweep) -> str:
    """Save the report in W&B, and give its address.

    Raises:
        ComparisonError: there is no API key, or W&B refuses.
    """
    import wandb

    from rlhf_lightning.tracking.wandb_client import has_credentials

    if not has_credentials():
        fix = "run `wandb login` or set WANDB_API_KEY, or look at the request first: --dry-run"
        raise ComparisonError("There is no W&B API key.", fix=fix)
    try:
        entity = sweep.entity or str(wandb.Api().default_entity)
        return str(build_report(sweep, entity).save().url)
    except (wandb.errors.Error, ValueError) as error:  # ValueError: the project is not there
        raise ComparisonError(
            f"W&B did not take the report: {str(error).strip().splitlines()[0]}",
            where=f"{sweep.entity or 'your default entity'}/{sweep.project}",
            fix="check --entity and --project; runs that were logged offline are uploaded with `wandb sync`",
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the report that the command line asks for."""
    parser = argparse.ArgumentParser(description="A report in W&B about a sweep.")
    parser.add_argument("sweep", type=Path, help="the sweep's directory")
    parser.add_argument("--entity", help="who owns the report; default: who owns the runs")
    parser.add_argument("--project", help="default: where the runs are")
    parser.add_argument("--dry-run", action="store_true", help="print the request as JSON and send nothing")
    asked = parser.parse_args(arguments)
    try:
        if find_spec("wandb_workspaces") is None:
            fix = "pip install 'rlhf-lightning[wandb-workspaces]'"
            raise ComparisonError("The package wandb-workspaces is not installed.", fix=fix)
        sweep = read_sweep(asked.sweep, asked.entity, asked.project)
        sys.stdout.write(f"{json.dumps(request(sweep), indent=2) if asked.dry_run else save(sweep)}\n")
    except RlhfError as error:
        sys.stderr.write(f"{error.render()}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
