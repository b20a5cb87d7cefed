"""The script that builds a report of a sweep, up to the request that it would send."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from load_script import load_script

# The package that builds reports is written for Pydantic's first version.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

SCRIPT = Path(__file__).parents[2] / "scripts" / "wandb_report.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("wandb_report")


def sweep_of(
    path: Path, coefs: tuple[float, ...] = (0.1, 0.5), seeds: tuple[int, ...] = (1,), gold: bool = True
) -> Path:
    """Directories of finished jobs that were logged to W&B."""
    jobs = [(coef, seed) for coef in coefs for seed in seeds]
    for number, (coef, seed) in enumerate(jobs):
        job = path / str(number)
        (job / "wandb").mkdir(parents=True)
        config = {
            "seed": seed,
            "pipeline": {"name": "rlhf", "stages": ["sft", "ppo", "evaluate"]},
            "kl": {"kind": "fixed", "coef": coef},
            "evaluate": {"policies": ["sft", "ppo"]},
        }
        figures = {"proxy_reward": 0.5, "kl": 2.0, **({"gold_reward": coef} if gold else {})}
        metrics = {"objective": coef, "stages": {"ppo": {}}, "evaluate": {"ppo": {"validation": {}, "iid": figures}}}
        (job / "config.yaml").write_text(yaml.safe_dump(config))
        (job / "metrics.json").write_text(json.dumps(metrics))
        identity = {"id": f"run{number}", "group": "my_sweep", "project": "my_project", "entity": "my_team"}
        (job / "wandb" / "ppo.json").write_text(json.dumps(identity))
    return path


def dry_run(script: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert script.main([*arguments, "--dry-run"]) == 0
    request: dict[str, Any] = json.loads(capsys.readouterr().out)
    return request


def grids(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [block["metadata"] for block in spec["blocks"] if block["type"] == "panel-grid"]


def panels(grid: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Configs of a grid's panels, by the kind that W&B calls them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for panel in grid["panelBankSectionConfig"]["panels"]:
        found.setdefault(panel["viewType"], []).append(panel["config"])
    return found


def test_runs_are_found_by_group_and_stage(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = dry_run(script, capsys, str(sweep_of(tmp_path / "sweep")))
    assert (request["operation"], request["type"]) == ("upsertView", "runs")
    assert (request["entityName"], request["projectName"]) == ("my_team", "my_project")
    assert request["displayName"] == "Sweep my_sweep"
    asked = [
        {
            (told["key"]["section"], told["key"]["name"]): (told["op"], told["value"])
            for told in runset["filters"]["filters"]
        }
        for grid in grids(request["spec"])
        for runset in grid["runSets"]
    ]
    assert asked == [
        {("run", "group"): ("=", "my_sweep"), ("run", "jobType"): ("=", "evaluate")},
        {("run", "group"): ("=", "my_sweep"), ("run", "jobType"): ("=", "ppo")},
    ]


def test_the_table_shows_what_differs_and_the_best_first(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = grids(dry_run(script, capsys, str(sweep_of(tmp_path / "sweep")))["spec"])
    (runset,) = outcome["runSets"]
    assert runset["runFeed"]["columnOrder"] == [
        *("run:displayName", "run:state", "config:kl.value.coef", "config:seed.value"),
        *("summary:ppo/iid/proxy_reward", "summary:ppo/iid/gold_reward", "summary:ppo/iid/kl", "summary:objective"),
    ]
    assert runset["runFeed"]["lockColumns"] is True
    assert runset["sort"]["keys"] == [{"key": {"section": "summary", "name": "objective"}, "ascending": False}]


def test_final_figures_are_drawn_against_settings_and_kl(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = grids(dry_run(script, capsys, str(sweep_of(tmp_path / "sweep", seeds=(1, 2))))["spec"])
    drawn = panels(outcome)
    (scatter,) = drawn["Scatter Plot"]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:ppo/iid/kl", "summary:ppo/iid/gold_reward")
    (coordinates,) = drawn["Parallel Coordinates Plot"]
    assert [column["accessor"] for column in coordinates["columns"]] == [
        *("config:kl.value.coef", "config:seed.value"),
        *("summary:ppo/iid/proxy_reward", "summary:ppo/iid/gold_reward", "summary:ppo/iid/kl", "summary:objective"),
    ]
    assert [config["diffOnly"] for config in drawn["Run Comparer"]] == ["split"]


def test_learning_curves_stand_over_episodes_and_average_seeds(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines(sweep: Path) -> list[dict[str, Any]]:
        _, curves = grids(dry_run(script, capsys, str(sweep))["spec"])
        return panels(curves)["Run History Line Plot"]

    one = lines(sweep_of(tmp_path / "one"))
    assert {config["xAxis"] for config in one} == {"rollout/episodes"}
    assert ["objective/score"] in [config["metrics"] for config in one]
    assert ["objective/gold"] in [config["metrics"] for config in one]
    assert not any("groupBy" in config for config in one)
    several = lines(sweep_of(tmp_path / "several", seeds=(1, 2, 3)))
    assert {config["groupBy"] for config in several} == {"kl.value.coef"}
    assert {(config["groupAgg"], config["groupArea"]) for config in several} == {("mean", "stderr")}


def test_without_the_truth_the_reward_model_is_drawn(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = grids(dry_run(script, capsys, str(sweep_of(tmp_path / "sweep", gold=False)))["spec"])
    (scatter,) = panels(outcome)["Scatter Plot"]
    assert scatter["yAxis"] == "summary:ppo/iid/proxy_reward"


def test_what_is_sent_is_what_the_dry_run_shows(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wandb_workspaces.reports.v2 import interface

    sent: list[dict[str, Any]] = []

    class Service:
        app_url = "https://wandb.example"

        def execute_graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
            if "upsertView" not in query:
                return {"project": {"internalId": "project-number"}}
            sent.append(variables)
            project = {"name": variables["projectName"], "entityName": variables["entityName"], "id": "1"}
            view = {"id": "report1", "name": "x", "displayName": variables["displayName"], "description": ""}
            return {"upsertView": {"view": {**view, "project": project, "spec": variables["spec"]}}}

    class Client:
        def __init__(self) -> None:
            self._service_api = Service()

        def projects(self, entity: str) -> list[SimpleNamespace]:
            assert entity == "other_team"
            return [SimpleNamespace(name="other_project")]

    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(interface, "_get_api", Client)
    sweep = str(sweep_of(tmp_path / "sweep"))
    where = ("--entity", "other_team", "--project", "other_project")
    shown = dry_run(script, capsys, sweep, *where)
    assert script.main([sweep, *where]) == 0
    assert capsys.readouterr().out.startswith("https://wandb.example/other_team/other_project/reports/")
    (request,) = sent
    assert {name: request[name] for name in ("entityName", "projectName", "displayName", "description", "type")} == {
        name: shown[name] for name in ("entityName", "projectName", "displayName", "description", "type")
    }
    spec = json.loads(request["spec"])
    for grid in grids(spec):
        for runset in grid["runSets"]:
            assert runset.pop("project") == {
                "id": "project-number",
                "name": "other_project",
                "entityName": "other_team",
            }
    assert without_ids(spec) == without_ids(shown["spec"])


def without_ids(value: Any) -> Any:
    """Every part of a report gets a new random id each time."""
    if isinstance(value, dict):
        return {name: without_ids(part) for name, part in value.items() if name not in ("id", "ref", "__id__")}
    return [without_ids(part) for part in value] if isinstance(value, list) else value


def test_what_is_missing_is_named(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert script.main(arguments) == 2
        return capsys.readouterr().err

    sweep = sweep_of(tmp_path / "sweep")
    assert "There is no W&B API key." in refused(str(sweep))
    assert "There is no such directory." in refused(str(tmp_path / "nowhere"), "--dry-run")
    for identity in sweep.glob("*/wandb/*.json"):
        identity.unlink()
    assert "No run of this sweep was logged to W&B." in refused(str(sweep), "--dry-run")
    monkeypatch.setattr(script, "find_spec", lambda _: None)
    assert "pip install 'rlhf-lightning[wandb-workspaces]'" in refused(str(sweep))
