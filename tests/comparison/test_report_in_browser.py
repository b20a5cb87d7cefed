"""report.html in a real browser: what a reader sees, presses and drags. Skipped where there is no Chromium."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from report_runs import HOSTILE, SAMPLE, compared, write_run, write_sweep

from rlhf_lightning.comparison.report import write_report

playwright = pytest.importorskip("playwright.sync_api", reason="playwright (extra dev) is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path: apt-get install chromium")

GROUP_ROWS = "#group-table > tbody > tr[data-group]"
PHONE = {"width": 390, "height": 844}
NOT_FOR_READERS = re.compile(r"\b(null|undefined|NaN|Infinity|\[object)\b")


@dataclass
class Opened:
    """A page, and what it said and asked for while it was open."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Chromium refuses to sandbox itself for root, whom containers like to be.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def watched(page: Any) -> Opened:
    page.set_default_timeout(5_000)
    found = Opened(page)
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("console", lambda message: found.errors.append(message.text))
    page.on("request", lambda request: found.requests.append(request.url))
    return found


@pytest.fixture(scope="module")
def plain(browser: Any) -> Opened:
    """The page of all tests that want none of a special kind: making one takes as long as opening a report."""
    return watched(browser.new_context().new_page())


@pytest.fixture
def open_report(browser: Any, plain: Opened) -> Iterator[Open]:
    """Opens a file. At the end of the test nothing may have gone wrong or been asked for."""
    opened: list[Opened] = []

    def go(path: Path, **context: Any) -> Opened:
        found = watched(browser.new_context(**context).new_page()) if context else plain
        found.errors.clear()
        found.requests.clear()
        page = found.page
        page.mouse.move(0, 0)
        page.goto(path.as_uri())
        page.wait_for_selector("#made")
        page.wait_for_timeout(50)  # charts draw when their width is known
        opened.append(found)
        return found

    yield go
    for found in opened:
        assert found.errors == []
        assert [url for url in found.requests if not url.startswith(("file:", "data:"))] == []
        assert len([url for url in found.requests if url.startswith("file:")]) == 1
        if found is not plain:
            found.page.context.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of 18 jobs: 3 coefficients, 2 kinds of tuning, 3 seeds; one failed."""
    folder = tmp_path_factory.mktemp("sweep")
    write_report(compared(write_sweep(folder / "sweep")), folder / "report.html")
    return folder / "report.html"


def reported(folder: Path, *runs: Path) -> Path:
    write_report(compared(*(runs or (folder,))), folder / "report.html")
    return folder / "report.html"


def column(page: Any, number: int) -> list[str]:
    cells = page.locator(f"{GROUP_ROWS} > :nth-child({number})").all()
    return [cell.inner_text().split("\n")[0].strip() for cell in cells]


def choose(page: Any, section: str, label: str, option: str) -> None:
    page.locator(f"#{section}").get_by_label(label, exact=True).select_option(label=option)


def test_it_opens_without_an_error_or_a_request(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    assert page.title() == "Comparison of runs"
    assert page.locator("h1").inner_text() == "18 runs by kl.coef, peft"
    assert page.locator("#findings li").count() == 4
    assert page.locator("main svg[role=img]").count() == 2
    assert not NOT_FOR_READERS.search(page.locator("body").inner_text())
    # And every control has a name.
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, select, input, [tabindex], svg[role]")]
            .filter((node) => !(node.getAttribute("aria-label") || node.textContent.trim() || node.labels?.length))
            .map((node) => node.outerHTML)"""
    )
    assert unnamed == []


def test_the_policy_stops_what_would_lead_out(browser: Any, sweep: Path) -> None:
    page = browser.new_page()
    answered: list[str] = []
    page.on("response", lambda response: answered.append(response.url))
    page.goto(sweep.as_uri())
    blocked = page.evaluate(
        """async () => {
            const found = [];
            document.addEventListener("securitypolicyviolation", (event) => found.push(event.effectiveDirective));
            document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x.png" }));
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.hacked = 1" }));
            const answer = await fetch("http://127.0.0.1:9/").then(() => "answered", () => "refused");
            await new Promise((done) => setTimeout(done, 50));
            return [answer, window.hacked ?? null, ...found.sort()];
        }"""
    )
    assert blocked == ["refused", None, "connect-src", "img-src", "script-src-elem"]
    assert [url for url in answered if url.startswith("http")] == []
    page.close()


def test_groups_come_best_first_with_the_best_marked(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    assert column(page, 1) == ["0.1", "0.1", "0.02", "0.02", "0.5", "0.5"]
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("objective")
    first = page.locator(GROUP_ROWS).first
    assert first.locator(".best").count() >= 1
    assert "baseline" in first.inner_text()
    assert first.locator("td.numeric").nth(1).text_content() == "★ best +0.97± 0.02"


def test_a_click_on_a_heading_sorts_by_number_and_a_second_turns_it_round(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    heading = page.locator("#group-table thead button", has_text="kl.coef")
    heading.click()
    assert column(page, 1) == ["0.02", "0.02", "0.1", "0.1", "0.5", "0.5"]
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("kl.coef")
    heading.click()
    assert column(page, 1) == ["0.5", "0.5", "0.1", "0.1", "0.02", "0.02"]


def test_the_keyboard_sorts_and_keeps_its_place(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    page.locator("#group-table thead button", has_text="objective").focus()
    page.keyboard.press("Enter")
    assert column(page, 1)[:2] == ["0.5", "0.5"]
    assert page.evaluate("document.activeElement.textContent") == "objective ↑"


def test_the_filter_keeps_groups_by_their_settings(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    page.get_by_label("Filter").fill("peft=lora")
    assert column(page, 2) == ["lora", "lora", "lora"]
    assert "3 of 6 groups" in page.locator("#groups").inner_text()


def test_the_second_line_can_be_the_difference(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    choose(page, "groups", "Second line", "difference from the baseline")
    lines = [row.locator("td.numeric").nth(1).locator("small").inner_text() for row in page.locator(GROUP_ROWS).all()]
    assert lines[0] == "baseline"
    assert lines[1].startswith("-0.05")


def test_a_group_unfolds_into_its_runs(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    button = page.get_by_role("button", name="Runs of kl.coef=0.5 peft=lora")
    assert button.inner_text() == "2 of 3"
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    runs = page.locator("#group-table tr.runs:not([hidden]) tbody tr")
    assert [run.locator("td").nth(1).inner_text() for run in runs.all()] == ["failed", "finished", "finished"]
    assert [run.locator("td").nth(0).inner_text() for run in runs.all()] == ["1", "2", "3"]


def test_failed_jobs_are_listed_with_their_error_and_directory(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    told = page.locator("#left-out").inner_text()
    assert "failed in stage ppo: The loss is not finite." in told
    assert str(sweep.parent / "sweep" / "15") in told
    page.locator("#provenance details", has_text="failed").locator("summary").click()
    told = page.locator("#provenance details[open]").inner_text()
    assert str(sweep.parent / "sweep" / "15") in told
    assert "The loss is not finite." in told


def test_the_theme_follows_the_system_and_the_switch(open_report: Open, sweep: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page = open_report(sweep, color_scheme="dark").page
    assert page.evaluate(ground) == "rgb(20, 22, 26)"
    page.get_by_role("button", name="Light theme").click()
    assert page.evaluate(ground) == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Dark theme").click()
    assert page.evaluate(ground) == "rgb(20, 22, 26)"


def test_another_metric_draws_another_chart(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    chart = page.locator("#curves svg[role=img]")
    assert "objective/gold of ppo" in chart.get_attribute("aria-label")
    before = page.locator("#curves [data-group='0'] .line").get_attribute("d")
    choose(page, "curves", "Metric", "objective/entropy")
    assert "objective/entropy of ppo" in chart.get_attribute("aria-label")
    assert page.locator("#curves [data-group='0'] .line").get_attribute("d") != before
    # SFT has no episodes: the axis follows.
    choose(page, "curves", "Metric", "sft/loss")
    assert page.locator("#curves").get_by_label("Along").locator("option").all_inner_texts() == ["optimizer steps"]
    assert "optimizer steps" in chart.text_content()


def test_seeds_are_a_range_or_lines_or_left_away(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    parts = {"their range": (6, 1), "each a thin line": (0, 18), "the mean alone": (0, 0)}
    for option, (bands, lines) in parts.items():  # of the 18 the one that failed is always apart
        choose(page, "curves", "Seeds", option)
        assert page.locator("#curves .band").count() == bands
        assert page.locator("#curves .thin").count() == lines


def test_the_legend_hides_a_group_in_both_charts(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    assert page.locator("[data-group='2'] .line").count() == 3
    page.locator("#curves .legend button").nth(2).click()
    assert page.locator("[data-group='2'] .line").count() == 0
    pressed = [
        page.locator(f"#{section} .legend button").nth(2).get_attribute("aria-pressed")
        for section in ("curves", "frontier")
    ]
    assert pressed == ["false", "false"]
    page.locator("#frontier .legend").get_by_role("button", name="None", exact=True).click()
    assert "No group is chosen" in page.locator("#curves").inner_text()
    page.locator("#frontier .legend").get_by_role("button", name="All", exact=True).click()
    assert page.locator("[data-group='2'] .line").count() == 3


def test_arrow_keys_read_a_chart_point_by_point(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    page.locator("#curves svg[role=img]").focus()
    tooltip = page.locator("#tooltip")
    page.keyboard.press("ArrowRight")
    # The best group's objectives are 0.96, 0.97 and 0.98; the first of 20 iterations has a twentieth of each.
    assert tooltip.inner_text().split("\n") == [
        "kl.coef=0.1 peft=none",
        "objective/gold 0.0485",
        "0.0480 to 0.0490 over 3 runs",
        "episode 128",
    ]
    page.keyboard.press("ArrowRight")
    assert "episode 256" in tooltip.inner_text()
    page.keyboard.press("ArrowDown")
    assert tooltip.inner_text().startswith("kl.coef=0.1 peft=lora")
    page.keyboard.press("Escape")
    assert tooltip.is_hidden()


def test_the_pointer_reads_a_chart(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    marker = page.locator("#frontier [data-group='0'] .marker").last
    marker.scroll_into_view_if_needed()
    marker.hover(force=True)
    assert "√KL 2.00" in page.locator("#tooltip").inner_text()


def test_gold_and_proxy_can_be_drawn_alone(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    for option, gold, proxy in (("gold and proxy", 6, 6), ("gold alone", 6, 0), ("proxy alone", 0, 6)):
        choose(page, "frontier", "Rewards", option)
        assert page.locator("#frontier [data-group] .line.gold").count() == gold
        assert page.locator("#frontier [data-group] .line.proxy").count() == proxy


def test_dragging_along_an_axis_keeps_the_runs_that_pass_there(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    axis = page.get_by_role("slider", name="Keep runs by kl.coef")
    axis.scroll_into_view_if_needed()
    box = axis.locator(".axis").bounding_box()
    x, top, height = box["x"] + box["width"] / 2, box["y"], box["height"]
    page.mouse.move(x, top + height + 4)
    page.mouse.down()
    page.mouse.move(x, top + 0.75 * height, steps=4)
    page.mouse.up()
    # The lowest quarter of the axis holds the smallest coefficient: jobs 0 to 5.
    assert "6 of 17 runs: 0, 1, 2, 3, 4, 5" in page.locator("#parallel").inner_text()
    assert page.locator("#parallel .way.out").count() == 11
    page.get_by_role("button", name="All runs").click()
    assert page.locator("#parallel .way.out").count() == 0


def test_the_keyboard_brushes_an_axis(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    axis = page.get_by_role("slider", name="Keep runs by kl.coef")
    axis.focus()
    page.keyboard.press("ArrowUp")
    # The highest quarter: the largest coefficient, whose first LoRA job failed.
    assert "5 of 17 runs: 12, 13, 14, 16, 17" in page.locator("#parallel").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#parallel .way.out").count() == 0


def test_samples_are_those_of_the_job_chosen(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep).page
    cards = page.locator("#sample-list")
    assert "response of job 6" in cards.inner_text()
    page.locator("#samples select").select_option(value="4")
    assert "response of job 4" in cards.inner_text()
    assert "gold -1.00, proxy -0.25" in cards.inner_text()
    assert "gold +0.75, proxy +1.50" in cards.inner_text()


def test_hostile_text_is_only_text(open_report: Open, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(
            tmp_path / f"{HOSTILE.replace('/', '')}{seed}",
            settings={"kl.coef": seed, "name": HOSTILE, "data.path": HOSTILE * seed},
            seed=seed,
            overrides=[f"data.path={HOSTILE}"],
            samples=[{key: HOSTILE if isinstance(value, str) else value for key, value in SAMPLE.items()}],
            provenance={HOSTILE: HOSTILE},
        )
    page = open_report(reported(tmp_path)).page
    page.locator("#provenance summary").first.click()
    assert page.evaluate("window.hacked ?? null") is None
    assert page.locator("img").count() == 0
    assert page.locator("#sample-list .response p").first.inner_text() == HOSTILE
    assert f"data.path={HOSTILE}" in page.locator("#provenance").inner_text()
    assert HOSTILE.replace("/", "") in page.locator("#provenance summary").first.inner_text()


@pytest.mark.parametrize("viewport", [PHONE, {"width": 320, "height": 600}], ids=["phone", "small phone"])
def test_a_phone_has_nothing_to_scroll_sideways(open_report: Open, sweep: Path, viewport: dict[str, int]) -> None:
    page = open_report(sweep, viewport=viewport, has_touch=True, is_mobile=True).page
    for details in page.locator("#provenance summary").all()[:2]:
        details.click()
    page.locator(".unfold").first.tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    table = page.locator("#groups .scroll")
    assert table.evaluate("(box) => box.scrollWidth > box.clientWidth")
    before, after = (page.locator("#sample-list .response").nth(index).bounding_box() for index in (0, 1))
    assert after["y"] > before["y"]


def test_long_names_do_not_push_a_phone_wide(open_report: Open, tmp_path: Path) -> None:
    for seed in (1, 2):
        long = {"model.name_or_path": "/very/long/path" * 12 + str(seed)}
        write_run(
            tmp_path / f"{'x' * 80}{seed}",
            settings=long,
            overrides=["y" * 200],
            samples=[{**SAMPLE, "after": "z" * 400}],
        )
    page = open_report(reported(tmp_path), viewport=PHONE).page
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_a_hundred_runs_are_usable(open_report: Open, tmp_path: Path) -> None:
    for index in range(100):
        settings = {"kl.coef": round(0.01 * (index + 1), 2)}
        write_run(tmp_path / str(index), settings=settings, objective=index / 100, iterations=8)
    path = reported(tmp_path)
    began = time.monotonic()
    page = open_report(path).page
    page.locator("#group-table thead button", has_text="kl.coef").click()
    page.locator("#curves .legend").get_by_role("button", name="All", exact=True).click()
    seconds = time.monotonic() - began
    assert column(page, 1)[:3] == ["0.01", "0.02", "0.03"]
    assert page.locator("#curves [data-group] .line").count() == 100
    assert page.locator("#parallel .way").count() == 100
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    assert seconds < 20.0
    assert path.stat().st_size < 2_000_000


def test_only_the_best_few_are_drawn_at_first(open_report: Open, tmp_path: Path) -> None:
    for index in range(12):
        write_run(tmp_path / str(index), settings={"kl.coef": index}, objective=index / 10)
    page = open_report(reported(tmp_path)).page
    assert page.locator("#curves [data-group] .line").count() == 8
    assert page.locator("#curves .legend [aria-pressed=true]").count() == 8


def test_one_run_alone_says_what_it_lacks(open_report: Open, tmp_path: Path) -> None:
    page = open_report(reported(tmp_path, write_run(tmp_path / "run"))).page
    assert "It takes two finished runs" in page.locator("#parallel").inner_text()
    assert page.locator("#curves [data-group] .line").count() == 1
    assert not NOT_FOR_READERS.search(page.locator("body").inner_text())


def test_runs_without_a_gold_reward_say_so(open_report: Open, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", samples=[{**SAMPLE, "gold_before": None, "gold_after": None}])
    history = (run / "history.csv").read_text().splitlines()
    (run / "history.csv").write_text("\n".join(line for line in history if "gold" not in line) + "\n")
    (run / "metrics.json").write_text((run / "metrics.json").read_text().replace("gold_reward", "other"))
    page = open_report(reported(tmp_path, run)).page
    assert "no gold reward" in page.locator("#frontier").inner_text()
    assert page.locator("#frontier [data-group] .line.proxy").count() == 1
    assert page.locator("#sample-list .response .note").last.inner_text() == "proxy +1.50"
    assert not NOT_FOR_READERS.search(page.locator("body").inner_text())


def test_runs_without_ppo_history_or_samples_say_so(open_report: Open, tmp_path: Path) -> None:
    for seed in (1, 2):
        run = write_run(tmp_path / str(seed), settings={"sft.epochs": seed}, samples=[])
        (run / "metrics.json").write_text('{"objective": 0.5, "stages": {"sft": {"validation_loss": 0.5}}}')
        (run / "history.csv").unlink()
    page = open_report(reported(tmp_path)).page
    assert "history.csv" in page.locator("#curves .absent").inner_text()
    assert "PPO" in page.locator("#frontier .absent").inner_text()
    assert "samples.jsonl" in page.locator("#samples .absent").inner_text()
    assert not NOT_FOR_READERS.search(page.locator("body").inner_text())


def test_runs_that_all_failed_are_still_told_of(open_report: Open, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed, state="failed", error="The loss is not finite.", gold=[])
    page = open_report(reported(tmp_path)).page
    assert "No run has finished" in page.locator("#findings").inner_text()
    assert page.locator("#left-out li").count() == 2
    assert page.locator("#provenance details").count() == 2
    assert not NOT_FOR_READERS.search(page.locator("body").inner_text())


def test_print_leaves_the_controls_away_and_is_light(open_report: Open, sweep: Path) -> None:
    page = open_report(sweep, color_scheme="dark").page
    page.emulate_media(media="print")
    assert page.locator(".controls").first.is_hidden()
    assert page.locator("#theme").is_hidden()
    assert page.locator("#group-table").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


def test_a_run_that_stopped_early_does_not_cut_its_groups_line(open_report: Open, tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed, objective=1.0)
    write_run(tmp_path / "3", seed=3, state="failed", error="Killed.", gold=[9.0, 9.0, 9.0])
    page = open_report(reported(tmp_path)).page
    # The mean of the two that finished: 20 points that end at 1.0, and nothing of the nines.
    assert "all runs ends at 1.00" in page.locator("#curves svg[role=img]").get_attribute("aria-label")
    assert page.locator("#curves .line[d]").first.get_attribute("d").count("L") == 19
    assert page.locator("#curves .unfinished").count() == 1
    assert page.locator("#frontier [data-group] .line.gold").get_attribute("d").count("L") == 9
