"""A user's own stage, reward and metric: a module and one YAML file each, and nothing else is told of them."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import blocks
from tiny_runs import ONE_ITERATION, finished_metrics, logged, placed
from tracking.offline_run import recorded

from rlhf_lightning.cli.main import main
from rlhf_lightning.evaluation.curves import points
from rlhf_lightning.stages.declaration import ROLLOUT_METRICS, STAGES
from rlhf_lightning.stages.reward_kinds import REWARDS
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.tracking.history_file import read_history

TOY = ("experiment=toy", "debug=tiny", "logger=none", "data.demonstrations=64")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with the module and the YAML files, from which `rlhf` is typed."""
    folder = shutil.copytree(Path(__file__).parent / "plugin", tmp_path / "mine")
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("toy_stage", None)
    STAGES.pop("toy", None)
    REWARDS.pop("brevity", None)
    ROLLOUT_METRICS.clear()


def typed(folder: Path, *overrides: str) -> int:
    return main(["train", "-cd", str(folder), *overrides])


def opened(tmp_path: Path) -> RunDirectory:
    return RunDirectory.open(tmp_path / "run")


def test_a_stage_of_ones_own_runs_is_cached_and_resumed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = (f"paths.outputs={tmp_path}", f"paths.run_dir={tmp_path / 'run'}")
    assert typed(folder, *TOY, *places) == 0
    run = opened(tmp_path)
    first = finished_metrics(run)["stages"]["toy"]
    assert first["weight_norm"] == pytest.approx(sum(json.loads((run.path / "toy" / "norms.json").read_text())))
    assert len(points(read_history(run.path), "toy", "toy/weight_norm")) == 3

    assert typed(folder, *TOY, places[0], f"paths.run_dir={tmp_path / 'again'}") == 0
    assert "cache" in finished_metrics(RunDirectory.open(tmp_path / "again"))["stages"]["toy"]

    with monkeypatch.context() as patch:
        patch.setattr(STAGES["toy"], "run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        assert typed(folder, *TOY, "toy.scale=2", places[0], f"paths.run_dir={tmp_path / 'other'}") == 130
    assert main(["train", f"resume={tmp_path / 'other'}"]) == 0
    stages = finished_metrics(RunDirectory.open(tmp_path / "other"))["stages"]
    assert "cache" in stages["sft"]
    assert "cache" not in stages["toy"], "another setting, another key"
    assert stages["toy"]["weight_norm"] == pytest.approx(2 * first["weight_norm"])

    module = folder / "toy_stage.py"
    module.write_text(module.read_text().replace("sum(norms)}", "-sum(norms)}"))
    assert typed(folder, *TOY, places[0], f"paths.run_dir={tmp_path / 'edited'}") == 0
    stages = finished_metrics(RunDirectory.open(tmp_path / "edited"))["stages"]
    assert ("cache" in stages["sft"], "cache" in stages["toy"]) == (True, False), "its own file is in its key"


@pytest.mark.usefixtures("jobs_in_this_process")
def test_it_is_swept_compared_and_reported(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = tmp_path / "sweep"
    places = (f"paths.outputs={tmp_path}", f"paths.sweep_dir={sweep}")
    assert typed(folder, "-m", *logged(*TOY), "toy.scale=1,2", *places) == 0
    jobs = [RunDirectory.open(sweep / number) for number in ("0", "1")]
    norms = [finished_metrics(job)["stages"]["toy"]["weight_norm"] for job in jobs]
    assert norms[1] == pytest.approx(2 * norms[0])
    assert "cache" in finished_metrics(jobs[1])["stages"]["sft"]
    tracked = recorded(jobs[1].path, "toy")
    assert tracked.summaries["toy/weight_norm"] == {"max", "last"}
    logged_norms = [row["toy/weight_norm"] for row in tracked.history if "toy/weight_norm" in row]
    assert logged_norms == pytest.approx(json.loads((jobs[1].path / "toy" / "norms.json").read_text())[:3])
    capsys.readouterr()
    assert main(["compare", str(sweep), "--metrics", "toy.weight_norm"]) == 0
    assert "toy.scale" in capsys.readouterr().out
    page = (sweep / "compare" / "report.html").read_text(encoding="utf-8")
    assert "toy/weight_norm" in page


def test_the_example_in_the_map_of_the_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "my_stages.py").write_text(*(block for block in blocks("python") if "@register" in block))
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "norms.yaml").write_text(*(block for block in blocks("yaml") if "plugins" in block))
    monkeypatch.syspath_prepend(tmp_path)
    request.addfinalizer(lambda: (sys.modules.pop("my_stages", None), STAGES.pop("norms", None)))
    small = ("experiment=norms", "debug=tiny", "logger=none", "data.demonstrations=64")
    assert typed(tmp_path, *small, *placed(tmp_path)) == 0
    run = opened(tmp_path)
    norms = [float(line) for line in (run.path / "norms" / "norms.txt").read_text().splitlines()]
    assert finished_metrics(run)["stages"]["norms"]["largest"] == max(norms)


def test_a_reward_and_a_metric_of_ones_own(folder: Path, tmp_path: Path, tiny: RunDirectory) -> None:
    inputs = ("pipeline=ppo", f"ppo.policy_from={tiny.path / 'sft'}", "pipeline.stages=[ppo]")
    own = ("plugins=[toy_stage]", "allow_targets=[toy_stage]", "reward=brevity")
    raw = ("reward.scale=1.0", "reward.standardize_on_reference=null", "ppo.missing_eos_penalty=null")
    assert typed(folder, *ONE_ITERATION, *inputs, *own, *raw, *placed(tmp_path)) == 0
    history = read_history(opened(tmp_path).path)
    (longest,), (length,) = points(history, "ppo", "rollout/longest"), points(history, "ppo", "rollout/length")
    (score,) = points(history, "ppo", "objective/score")
    assert longest.value >= length.value == pytest.approx(-score.value)


def test_a_key_that_is_not_declared_cannot_be_read(folder: Path, tmp_path: Path) -> None:
    module = folder / "toy_stage.py"
    text = module.read_text()
    module.write_text(
        text.replace("        settings = context", "        context.settings.kl\n        settings = context")
    )
    assert typed(folder, *TOY, *placed(tmp_path)) == 1
    error = opened(tmp_path).status.error
    assert error is not None
    assert "has no attribute 'kl'" in error.what


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["allow_targets=[]"], "toy_stage may not be imported"),
        (["plugins=[toy_stages]", "allow_targets=[toy_stages]"], "toy_stages cannot be imported: ModuleNotFoundError"),
        (["toy.scale=0"], "toy.scale: expects a number > 0, got 0"),
        (["toy.scael=1"], "did you mean toy.scale"),
        (["toy.policy_from=ppo"], "stage 'ppo' does not run before 'toy'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    folder: Path, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(folder, *TOY, *overrides) == 2
    assert message in capsys.readouterr().err
