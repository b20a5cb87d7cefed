"""Groups, their order, what they are set against, and what is said under the table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from report_runs import write_json, write_run, write_sweep

from rlhf_lightning.comparison.compare import compare
from rlhf_lightning.comparison.records import Comparison
from rlhf_lightning.comparison.request import Request
from rlhf_lightning.comparison.tables import differences, means, summary
from rlhf_lightning.errors import ComparisonError

T2 = 4.3026527297  # t(0.975) with two degrees of freedom


def compared(
    *directories: Path,
    by: str | None = None,
    metrics: str | None = None,
    sort: str | None = None,
    baseline: str = "best",
) -> Comparison:
    words = [tuple(text.split(",")) if text else None for text in (by, metrics)]
    return compare(directories, Request(by=words[0], metrics=words[1], sort=sort, baseline=baseline))


def labels(comparison: Comparison) -> list[str]:
    return [group.label for group in comparison.groups]


def test_groups_differ_in_settings_hold_the_seeds_and_stand_best_first(tmp_path: Path) -> None:
    for job, (coef, seed, objective) in enumerate(
        [("0.1", 1, 0.5), ("0.5", 1, 0.9), ("0.1", 2, 0.7), ("0.5", 2, 1.0), ("0.1", 3, 0.6), ("0.5", 3, 0.8)]
    ):
        write_run(
            tmp_path / str(job),
            settings={"kl.coef": float(coef)},
            seed=seed,
            objective=objective,
            overrides=[f"kl.coef={coef}", f"seed={seed}"],
        )
    comparison = compared(tmp_path)
    assert comparison.keys == ("kl.coef",)
    assert labels(comparison) == ["kl.coef=0.5", "kl.coef=0.1"]
    best, other = comparison.groups
    assert [run.name for run in best.runs] == ["1", "3", "5"]
    assert comparison.baseline is best
    assert best.deltas == {}
    # 0.9, 1.0, 0.8: s = 0.1.
    assert best.estimates["objective"].mean == pytest.approx(0.9)
    assert best.estimates["objective"].high == pytest.approx(0.9 + T2 * 0.1 / math.sqrt(3))
    # Differences -0.4, -0.3, -0.2: mean -0.3, s = 0.1.
    delta = other.deltas["objective"]
    assert (delta.method, delta.count) == ("paired", 3)
    assert delta.low == pytest.approx(-0.3 - T2 * 0.1 / math.sqrt(3))
    assert delta.is_clear
    assert means(comparison)[1] == {
        **{"kl.coef": "0.1", "n": "3", "objective": "+0.60 ±0.25", "gold reward, iid": "+0.60 ±0.25"},
        **{"proxy reward, iid": "+0.85 ±0.25", "KL (nats), iid": "4.00 ±0.00", "harmful, iid": "12.5% ±0.0%"},
        "seconds": "125 ±0",
    }
    assert differences(comparison)[0]["objective"] == "-0.30 ±0.25"
    assert summary(comparison) == "6 runs in 2 groups, all 6 finished"


def test_by_averages_over_the_rest_within_each_seed(tmp_path: Path) -> None:
    comparison = compared(write_sweep(tmp_path), by="peft")
    assert comparison.keys == ("peft",)
    lora = next(group for group in comparison.groups if group.settings == {"peft": "lora"})
    # Seeds 2 and 3 hold all three coefficients: (0.7 + 0.9 + 0.4) / 3 + 0.01 seed; seed 1 of 0.5 failed: 0.8 + 0.01.
    assert lora.estimates["objective"].count == 3
    assert lora.estimates["objective"].mean == pytest.approx((0.81 + 2 / 3 + 0.02 + 2 / 3 + 0.03) / 3)
    (delta,) = [group.deltas["objective"] for group in comparison.groups if group.deltas]
    assert abs(delta.mean) == pytest.approx(0.05)  # within the same coefficient and seed, always 0.05
    told = " ".join(comparison.notes)
    assert "Averaged within each seed over kl.coef." in told
    assert "do not hold the same combinations" in told
    assert {row["runs"] for row in means(comparison)} == {"9", "8 of 9"}


def test_by_the_seed_makes_groups_without_intervals(tmp_path: Path) -> None:
    comparison = compared(write_sweep(tmp_path), by="seed")
    assert labels(comparison) == ["seed=1", "seed=3", "seed=2"]  # of seed 1 the weakest cell is missing
    assert all(group.estimates["objective"].low is None for group in comparison.groups)
    assert any(note.startswith("Grouped by the seed") for note in comparison.notes)


def test_every_key_of_the_config_can_be_grouped_by(tmp_path: Path) -> None:
    write_run(tmp_path / "0", settings={"kl.coef": 0.1, "peft.kind": "lora", "trainer.threads": 1})
    comparison = compared(tmp_path, by="peft,kl.coef,trainer.threads")
    assert labels(comparison) == ["peft=lora kl.coef=0.1 trainer.threads=1"]
    assert comparison.baseline is comparison.groups[0]


def test_the_order_and_the_figures_can_be_chosen(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path)
    comparison = compared(sweep, metrics="iid.k*,harmful_rate,ppo.score", sort="iid.kl")
    assert [metric.name for metric in comparison.metrics] == ["iid.kl", "iid.harmful_rate", "ppo.score"]
    assert comparison.sort.higher_is_better is False
    assert "Sorted by iid.kl, lowest first." in comparison.notes


def test_lowest_first_where_lower_is_better(tmp_path: Path) -> None:
    for job, kl in enumerate((3.0, 1.0, 2.0)):
        path = write_run(tmp_path / str(job), settings={"kl.coef": job})
        metrics = json.loads((path / "metrics.json").read_text())
        metrics["evaluate"]["ppo"]["iid"]["kl"] = kl
        write_json(path / "metrics.json", metrics)
    assert labels(compared(tmp_path, sort="iid.kl")) == ["kl.coef=1", "kl.coef=2", "kl.coef=0"]


@pytest.mark.parametrize(
    ("baseline", "found"),
    [
        ("best", "kl.coef=0.1 peft=none"),
        ("first", "kl.coef=0.02 peft=none"),
        ("peft=lora,kl.coef=5e-1", "kl.coef=0.5 peft=lora"),
    ],
)
def test_the_baseline_can_be_chosen(tmp_path: Path, baseline: str, found: str) -> None:
    comparison = compared(write_sweep(tmp_path), baseline=baseline)
    assert comparison.baseline is not None
    assert comparison.baseline.label == found
    assert comparison.baseline.deltas == {}
    assert all(group.deltas for group in comparison.groups if group is not comparison.baseline)


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        ({"by": "kl.coeff"}, "No run's config has a key 'kl.coeff'.", "did you mean kl.coef?"),
        ({"by": "coef"}, "No run's config has a key 'coef'.", "did you mean kl.coef?"),
        ({"by": "xyz"}, "No run's config has a key 'xyz'.", "there are: seed, pipeline.stages"),
        ({"metrics": "gold_rewrd"}, "No finished run has a metric 'gold_rewrd'.", "did you mean "),
        ({"sort": "iid.gold"}, "No finished run has a metric 'iid.gold'.", "did you mean "),
        ({"baseline": "kl=0.1"}, "The groups are not told apart by 'kl'.", "did you mean kl.coef?"),
        ({"baseline": "kl.coef=0.1"}, "Several groups have these settings.", "name one: kl.coef=0.1,peft=none | "),
        ({"baseline": "kl.coef=7"}, "No group with figures has these settings.", "name one: kl.coef=0.1,peft=none"),
        ({"baseline": "worst"}, "A baseline is named by its settings.", "write best, first, or settings"),
    ],
)
def test_what_is_not_there_is_answered_with_what_is(
    tmp_path: Path, arguments: dict[str, str], what: str, fix: str
) -> None:
    with pytest.raises(ComparisonError) as caught:
        compared(write_sweep(tmp_path), **arguments)
    assert caught.value.what == what
    assert caught.value.fix is not None
    assert caught.value.fix.startswith(fix)


def test_runs_that_did_not_finish_are_named_and_do_not_count(tmp_path: Path) -> None:
    write_run(tmp_path / "0", settings={"kl.coef": 0.1}, objective=0.5)
    failed = write_run(
        tmp_path / "1", settings={"kl.coef": 0.1}, seed=2, state="failed", error="Out of memory.\nSorry."
    )
    write_json(failed / "metrics.json", {"objective": 99.0, "stages": {}, "evaluate": {}})
    write_run(tmp_path / "2", settings={"kl.coef": 0.2}, state="pending")
    write_run(tmp_path / "3", settings={"kl.coef": 0.1}, seed=3)
    (tmp_path / "3" / "metrics.json").unlink()
    (write_run(tmp_path / "4") / "config.yaml").write_text("a: [1")
    (write_run(tmp_path / "5") / "config.yaml").unlink()
    comparison = compared(tmp_path)
    assert labels(comparison) == ["kl.coef=0.1", "kl.coef=0.2"]
    assert comparison.groups[0].estimates["objective"].mean == 0.5
    assert means(comparison)[0]["runs"] == "1 of 3"
    assert means(comparison)[1]["objective"] == "-"
    assert [(entry.where, entry.why) for entry in comparison.left_out] == [
        ("1", "failed in stage ppo: Out of memory."),
        ("2", "pending in stage ppo"),
        ("3", "finished, but left no figures"),
        ("4", "config.yaml cannot be read: while parsing a flow sequence"),
        ("5", "has no config.yaml"),
    ]
    assert [run.name for run in comparison.runs] == ["0", "1", "2", "3", "4", "5"]


def test_a_sweep_that_has_just_begun_has_groups_and_no_figures(tmp_path: Path) -> None:
    for job, state in enumerate(("running", "pending")):
        write_run(tmp_path / str(job), settings={"kl.coef": job}, state=state)
    comparison = compared(tmp_path)
    assert comparison.baseline is None
    assert comparison.notes == ("No run has finished with figures yet.",)
    assert means(comparison) == [
        {"kl.coef": "0", "runs": "0 of 1", "n": "-"},
        {"kl.coef": "1", "runs": "0 of 1", "n": "-"},
    ]
    assert differences(comparison) == []


def test_one_run_is_a_comparison_with_nothing(tmp_path: Path) -> None:
    comparison = compared(write_run(tmp_path / "run"))
    assert labels(comparison) == ["all runs"]
    assert differences(comparison) == []
    assert summary(comparison) == "1 run in 1 group, 1 finished"
    assert comparison.notes[0].startswith("One seed each (n = 1): no interval")


def test_the_same_settings_and_seed_twice_count_as_one_seed(tmp_path: Path) -> None:
    for job, objective in enumerate((0.4, 0.6)):
        write_run(tmp_path / str(job), objective=objective)
    comparison = compared(tmp_path)
    (estimate,) = [group.estimates["objective"] for group in comparison.groups]
    assert (estimate.mean, estimate.count) == (pytest.approx(0.5), 1)
    assert any("the same settings and seed" in note for note in comparison.notes)


def test_groups_without_common_seeds_are_compared_unpaired_and_say_so(tmp_path: Path) -> None:
    for job, (coef, seed) in enumerate(((0.1, 1), (0.1, 2), (0.2, 3), (0.2, 4))):
        write_run(tmp_path / str(job), settings={"kl.coef": coef}, seed=seed, objective=coef + 0.01 * seed)
    comparison = compared(tmp_path)
    assert differences(comparison)[0]["objective"].endswith(" u")
    assert any(note.startswith("Marked u:") for note in comparison.notes)


def test_runs_of_another_version_are_compared_with_what_they_have(tmp_path: Path) -> None:
    write_run(tmp_path / "0", settings={"kl.coef": 0.1, "kl.estimator": "k1"}, objective=0.9)
    write_run(tmp_path / "1", settings={"kl.coef": 0.1})
    comparison = compared(tmp_path)
    assert labels(comparison) == ["kl.estimator=k1", "kl.estimator=(missing)"]
    assert any(note.startswith("(missing):") for note in comparison.notes)


def test_runs_of_other_pipelines_are_compared_with_a_warning(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    path = write_run(tmp_path / "1", settings={"pipeline.stages": ["sft"]})
    write_json(path / "metrics.json", {"objective": -0.5, "stages": {"sft": {"validation_loss": 0.5}}, "evaluate": {}})
    comparison = compared(tmp_path)
    assert labels(comparison) == ["pipeline.stages=[sft,ppo,evaluate]", "pipeline.stages=[sft]"]
    assert "The runs end in different stages, so their objectives are different figures." in comparison.notes
    assert means(comparison)[1]["gold reward, iid"] == "-"


def test_seconds_of_runs_that_took_stages_from_the_cache_are_explained(tmp_path: Path) -> None:
    path = write_run(tmp_path / "0")
    assert not any("cache" in note for note in compared(tmp_path).notes)
    metrics = json.loads((path / "metrics.json").read_text())
    metrics["stages"]["sft"] = {"seconds": 0.1, "cache": {"run": "elsewhere"}}
    write_json(path / "metrics.json", metrics)
    assert any("stages from the cache" in note for note in compared(tmp_path).notes)
    assert not any("cache" in note for note in compared(tmp_path, metrics="objective").notes)


def test_without_an_evaluation_the_stages_own_figures_are_shown(tmp_path: Path) -> None:
    path = write_run(tmp_path / "0")
    stages = {"ppo": {"score": 1.0, "kl": 2.0}, "sft": {"validation_loss": 0.5}, "reward_model": {"accuracy": 0.75}}
    write_json(path / "metrics.json", {"objective": 1.0, "stages": stages, "evaluate": {}})
    assert means(compared(tmp_path)) == [
        {
            **{"n": "1", "objective": "+1.00", "score, ppo": "1.00", "KL (nats), ppo": "2.00"},
            **{"validation loss, sft": "0.500", "accuracy, reward_model": "75.0%", "seconds": "125"},
        }
    ]


def test_the_same_comparison_whatever_the_order_on_disk(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    whole = compared(sweep)
    one_by_one = compared(*(sweep / str(job) for job in range(18)))
    assert means(whole) == means(one_by_one)
    assert differences(whole) == differences(one_by_one)
