"""report.html as a file: what is in it, what is not, and how big it may get."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, ITERATIONS, SAMPLE, compared, metrics, write_json, write_run, write_sweep

from rlhf_lightning.comparison import report
from rlhf_lightning.comparison.records import Comparison
from rlhf_lightning.comparison.report import write_report
from rlhf_lightning.comparison.report.content import LONGEST_TEXT, content
from rlhf_lightning.comparison.report.histories import downsample, rounded, stride
from rlhf_lightning.comparison.report.writing import SCRIPTS, as_safe_json
from rlhf_lightning.evaluation.curves import Point

PAGE = Path(report.__file__).parent / "page"
TWO_MEGABYTES = 2_000_000


class Parts(HTMLParser):
    """The text of each style and script, the tags, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._open = named.get("type") or tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag: str) -> None:  # noqa: ARG002
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open] = self.texts.get(self._open, "") + data


def written(comparison: Comparison, folder: Path) -> tuple[str, Parts]:
    path = folder / "compare" / "report.html"
    write_report(comparison, path)
    text = path.read_text(encoding="utf-8")
    return text, Parts(text)


def shown(comparison: Comparison) -> dict[str, Any]:
    """What the page's scripts get to see."""
    data = json.loads(as_safe_json(content(comparison, "now")))
    assert isinstance(data, dict)
    return data


@pytest.fixture
def sweep(tmp_path: Path) -> Comparison:
    return compared(write_sweep(tmp_path / "sweep"))


def test_it_says_when_and_by_what_it_was_made(sweep: Comparison, tmp_path: Path) -> None:
    text, _ = written(sweep, tmp_path)
    assert re.search(r"Made \d{4}-\d\d-\d\d[^\"]* by rlhf compare, rlhf_lightning \d", text)


def test_nothing_in_the_file_leads_out_of_it(sweep: Comparison, tmp_path: Path) -> None:
    text, parts = written(sweep, tmp_path)
    leading = [value for _, name, value in parts.attributes if name in ("src", "href", "action", "data")]
    assert all(value and value.startswith(("#", "data:")) for value in leading)
    assert not re.search(r"@import|url\(", parts.texts["style"])
    assert set(re.findall(r"https?://[^\s\"']+", text)) <= {"http://www.w3.org/2000/svg"}


def test_the_policy_allows_this_style_and_this_script_and_nothing_else(sweep: Comparison, tmp_path: Path) -> None:
    _, parts = written(sweep, tmp_path)
    (policy,) = (value for _, name, value in parts.attributes if name == "content" and value and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    for directive, part in (("style-src", "style"), ("script-src", "script")):
        digest = base64.b64encode(hashlib.sha256(parts.texts[part].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_what_runs_and_models_say_cannot_leave_its_element(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("/", "")  # a directory's name has no slash
    run = write_run(
        tmp_path / hostile, overrides=[f"name={HOSTILE}"], samples=[{**SAMPLE, "prompt": HOSTILE, "after": HOSTILE}]
    )
    _, parts = written(compared(run), tmp_path)
    assert "img" not in parts.tags
    assert parts.tags.count("script") == 2
    data = json.loads(parts.texts["application/json"])
    (found,) = data["runs"]
    assert found["samples"][0]["after"] == HOSTILE
    assert found["overrides"] == [f"name={HOSTILE}"]
    assert Path(found["directory"]).name == hostile


def test_embedded_json_is_ascii_without_angle_brackets() -> None:
    assert as_safe_json({"a": "<é\u2028>"}) == '{"a":"\\u003c\\u00e9\\u2028>"}'
    with pytest.raises(ValueError, match="Out of range float"):
        as_safe_json({"a": math.nan})


def test_every_file_of_the_page_is_in_it(sweep: Comparison, tmp_path: Path) -> None:
    assert {path.stem for path in PAGE.glob("*.js")} == set(SCRIPTS)
    _, parts = written(sweep, tmp_path)
    for path in PAGE.glob("*.js"):
        assert path.read_text(encoding="utf-8") in parts.texts["script"]
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text())


def test_a_thinned_curve_keeps_means() -> None:
    # Two by two: steps (1+3)/2, (5+7)/2 and the lone 9; values (1+2)/2, the finite one of (nan, 4), and 6.
    points = [Point(2 * i + 1, 10 * (i + 1), value) for i, value in enumerate((1.0, 2.0, math.nan, 4.0, 6.0))]
    thinned = downsample(points, 2)
    assert thinned.step == (2, 6, 9)
    assert thinned.episodes == (15, 35, 50)
    assert thinned.value == (1.5, 4.0, 6.0)


def test_a_stretch_without_finite_values_is_a_gap_and_lost_episodes_are_no_axis() -> None:
    thinned = downsample([Point(1, None, math.inf), Point(2, 8, 1.0)], 1)
    assert thinned.value == (None, 1.0)
    assert thinned.episodes is None


def test_the_longest_curve_decides_for_all() -> None:
    assert stride([3, 101, 50], 50) == 3
    assert stride([50], 50) == 1
    assert stride([], 50) == 1


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (1.234567, 1.2346),
        (0.0, 0.0),
        (3, 3.0),
        (math.nan, None),
        (math.inf, None),
        (None, None),
        ("1", None),
        (True, None),
    ],
)
def test_figures_keep_five_digits(value: object, kept: float | None) -> None:
    assert rounded(value) == kept


def test_seeds_of_unlike_length_keep_the_same_steps(tmp_path: Path) -> None:
    for seed, iterations in ((1, 1000), (2, 700)):
        write_run(tmp_path / "sweep" / str(seed), seed=seed, iterations=iterations)
    data = shown(compared(tmp_path / "sweep"))
    index = str(data["curves"].index({"stage": "ppo", "name": "objective/kl"}))
    long, short = (data["grids"][run["series"][index][0]]["step"] for run in data["runs"])
    # 1000 points in at most 200: fives. Steps 7, 15, 23, 31, 39 have the mean 23.
    assert len(long) == 200
    assert long[0] == 23
    assert short == long[:140]
    assert "more than 200 points" in data["curve_note"]


def test_the_curves_people_look_at_first_come_first(sweep: Comparison) -> None:
    curves = shown(sweep)["curves"]
    assert curves[0] == {"stage": "ppo", "name": "objective/gold"}
    assert curves[-1] == {"stage": "sft", "name": "sft/loss"}


def test_a_path_is_in_the_scale_of_the_reward_model(tmp_path: Path) -> None:
    data = shown(compared(write_run(tmp_path / "run")))
    path = data["runs"][0]["path"]
    # 20 iterations in at most 15 points: twos. Logged scores 0.0 and 0.1, spread 0.5, offset 0.25: 0.05 * 0.5 + 0.25.
    assert len(path["step"]) == ITERATIONS / 2
    assert path["proxy"][0] == pytest.approx(0.275)
    # KL (2/20)^2 and (4/20)^2: the root of their mean, 0.025.
    assert path["distance"][0] == pytest.approx(math.sqrt(0.025), rel=1e-4)


def test_a_run_that_did_not_finish_has_no_path(tmp_path: Path) -> None:
    data = shown(compared(write_run(tmp_path / "run", state="failed")))
    assert data["runs"][0]["path"] is None
    assert data["runs"][0]["series"]


def test_evaluated_policies_stand_at_the_root_of_their_kl(tmp_path: Path) -> None:
    ends = shown(compared(write_run(tmp_path / "run", objective=0.75)))["runs"][0]["ends"]
    start, trained = ends
    assert (start["policy"], start["distance"], start["gold"]) == ("sft", 0.0, -0.5)
    assert (trained["policy"], trained["distance"], trained["proxy"], trained["gold"]) == ("ppo", 2.0, 1.0, 0.75)


def test_the_head_says_what_is_compared(sweep: Comparison) -> None:
    data = shown(sweep)
    assert data["title"] == "18 runs by kl.coef, peft"
    assert data["lead"] == "6 groups; 3 seeds each; 17 finished, 1 failed; started 2026-11-22 10:00."


def test_findings_name_the_best_its_distance_and_what_went_wrong(sweep: Comparison) -> None:
    best, against, hacked, unfinished = shown(sweep)["findings"]
    # 0.96, 0.97, 0.98: mean 0.97, s = 0.01, t(2) = 4.303: half an interval 0.0248.
    assert best == "Best objective: kl.coef=0.1 peft=none with +0.97 ±0.02 (95% interval, 3 seeds)."
    # Every pair of seeds differs by 0.05, so the interval is that point.
    assert against.startswith("kl.coef=0.1 peft=lora: -0.05")
    assert "against the baseline kl.coef=0.1 peft=none, a clear difference (95% interval, 3 pairs of seeds)" in against
    # Ten points of two iterations, five stretches of two points. The third has golds 0.95 and 0.85 at the roots of
    # (0.9^2 + 1.0^2) / 2 and (1.1^2 + 1.2^2) / 2, which are 0.951 and 1.151; the last has golds 0.25 and 0.05.
    assert hacked == (
        "Over-optimized: kl.coef=0.02 peft=lora. Its gold reward was +0.90 near √KL 1.1 and ended at +0.15, "
        "while the proxy rose."
    )
    assert unfinished == "1 of 18 runs did not finish with figures; see Left out."


def test_noise_is_no_over_optimization(tmp_path: Path) -> None:
    noise = [0.5 + (0.3 if index % 2 else -0.3) + (0.05 if index == 10 else 0.0) for index in range(ITERATIONS)]
    write_run(tmp_path / "run", gold=noise)
    assert not any(finding.startswith("Over-optimized") for finding in shown(compared(tmp_path / "run"))["findings"])


def test_the_chosen_baseline_is_the_one_differences_are_from(tmp_path: Path) -> None:
    data = shown(compared(write_sweep(tmp_path / "sweep"), baseline="kl.coef=0.5,peft=none"))
    baseline = data["groups"][data["baseline"]]
    assert baseline["name"] == "kl.coef=0.5 peft=none"
    assert baseline["deltas"] == [None] * len(data["metrics"])
    assert data["groups"][0]["deltas"][0].startswith("+0.50")
    assert data["findings"][1].startswith("kl.coef=0.1 peft=none: +0.50")


def test_one_run_has_no_best_and_no_baseline(tmp_path: Path) -> None:
    data = shown(compared(write_run(tmp_path / "run", objective=0.5)))
    assert data["title"] == "1 run"
    assert data["baseline"] is None
    assert data["findings"] == ["Objective: all runs with +0.50 (one seed, no interval)."]


def test_stages_from_the_cache_are_counted(tmp_path: Path) -> None:
    for index in range(2):
        write_run(tmp_path / "sweep" / str(index), seed=index)
    reused = metrics(0.5)
    reused["stages"]["sft"] = {"loss": 1.0, "cache": {"key": "abc"}}
    write_json(tmp_path / "sweep" / "1" / "metrics.json", reused)
    assert shown(compared(tmp_path / "sweep"))["findings"][-1] == "Reused from the stage cache, of 2 runs: sft in 1."


def test_facts_are_flat_and_name_the_exact_command(tmp_path: Path) -> None:
    provenance = {
        "started": "2026-11-22T10:00:00+00:00",
        "command": ["rlhf", "train", "kl.coef=0.1", "name=two words"],
        "git": {"commit": "abc123", "dirty": True, "diff": "-a\n+b\n"},
        "packages": {"torch": "2.13.0"},
        "machine": {"memory_bytes": 2**34, "gpus": []},
        "data": {},
    }
    run = write_run(tmp_path / "a run", provenance=provenance)
    (run / "reproduce.sh").write_text("#!/bin/sh\n")
    assert shown(compared(run))["runs"][0]["facts"] == {
        "command": "rlhf train kl.coef=0.1 'name=two words'",
        "git.commit": "abc123",
        "git.dirty": "yes",
        "git.diff": "2 lines, in provenance.json",
        "packages.torch": "2.13.0",
        "machine.memory_bytes": "16.0 GiB",
        "machine.gpus": "none",
        "data": "none",
        "run it again": f"bash '{run}/reproduce.sh'",
    }


def test_malformed_figures_of_a_run_do_not_reach_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", samples=[{**SAMPLE, "gold_after": math.nan, "proxy_after": None, "after": 7}])
    broken = metrics(0.5) | {"evaluate": {"ppo": {"iid": {"kl": "much"}, "ood": 3}, "sft": None}}
    write_json(run / "metrics.json", broken)
    found = shown(compared(run))["runs"][0]
    assert found["ends"] == []
    assert (found["samples"][0]["gold_after"], found["samples"][0]["after"]) == (None, "7")


def test_a_long_response_is_cut_and_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", samples=[{**SAMPLE, "after": "x" * (LONGEST_TEXT + 5)}])
    after = shown(compared(run))["runs"][0]["samples"][0]["after"]
    assert after == "x" * LONGEST_TEXT + " … (5 characters more in samples.jsonl)"


@pytest.mark.slow
def test_eighteen_long_jobs_stay_below_two_megabytes(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep")
    rows = [
        f"ppo,{8 * step + 7},{128 * (step + 1)},metric/{name},{step / 7 + name}"
        for step in range(300)
        for name in range(40)
    ]
    for run in sweep.iterdir():
        with (run / "history.csv").open("a") as file:
            file.write("\n".join(rows) + "\n")
    text, _ = written(compared(sweep), tmp_path)
    assert len(text.encode()) < TWO_MEGABYTES


def luminance(color: str) -> float:
    """Relative luminance as WCAG 2.2 defines it."""
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_black_on_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_and_lines_stand_out_in_both_themes(theme: int) -> None:
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", style)
    colors = {name: chosen[theme] for name, *chosen in pairs}
    series = [colors[f"series-{index}"] for index in range(8)]
    assert len(set(series)) == 8
    for name in ("text", "muted", "accent", "bad"):
        assert contrast(colors[name], colors["ground"]) >= 4.5, name
        assert contrast(colors[name], colors["raised"]) >= 4.5, name
    for color in series:
        assert contrast(color, colors["ground"]) >= 3.0, color


def test_long_labels_keep_what_tells_the_groups_apart(tmp_path: Path) -> None:
    place = "/a/long/path/to/some/model/that/everybody/knows"
    told = [("none", "1e-4", "x"), ("none", "1e-3", "x"), ("lora", "1e-3", "x"), ("lora", "1e-3", "y")]
    for index, (peft, rate, end) in enumerate(told):
        settings = {"peft": peft, "sft.learning_rate": rate, "model.path": f"{place}/{end}", "model.revision": end}
        write_run(tmp_path / str(index), settings=settings, objective=1.0 - 0.1 * index)
    names = [group["name"] for group in shown(compared(tmp_path))["groups"]]
    # Each key parts the four in two, and so does each pair in three at most. All four are apart with three keys; the
    # revision tells nothing that the path does not.
    x, y = (f"…{f'{place}/{end}'[-30:]}" for end in "xy")
    assert names == [
        f"peft=none sft.learning_rate=1e-4 model.path={x}",
        f"peft=none sft.learning_rate=1e-3 model.path={x}",
        f"peft=lora sft.learning_rate=1e-3 model.path={x}",
        f"peft=lora sft.learning_rate=1e-3 model.path={y}",
    ]
    assert all("model.revision" in group["label"] for group in shown(compared(tmp_path))["groups"])


def test_many_over_optimized_groups_are_counted_and_equal_ones_said_to_be_equal(tmp_path: Path) -> None:
    rise_and_fall = [1.0 - abs(index - 9) / 10 for index in range(ITERATIONS)]
    for index in range(5):
        write_run(tmp_path / str(index), settings={"kl.coef": index}, gold=rise_and_fall)
    found = shown(compared(tmp_path))["findings"]
    assert found[1] == "kl.coef=1: +0.00 against the baseline kl.coef=0, no difference."
    assert [finding.split(".")[0] for finding in found[2:5]] == ["Over-optimized: kl"] * 3
    assert found[5:] == ["Over-optimized as well: 2 more of 5 groups."]
