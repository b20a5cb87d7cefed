"""Model cards: front matter that parses, figures with intervals, and neither markup nor secrets of others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from rlhf_lightning.runs.model_card import ExportedModel, escaped, fenced, hub_id, model_card
from rlhf_lightning.stages.run_directory import METRICS, PROVENANCE, RunDirectory

Finished = Callable[..., RunDirectory]

HUB_DATA = {"kind": "hub", "name": "Anthropic/hh-rlhf", "split": "train"}
HUB_MODEL = {"kind": "hub", "name_or_path": "HuggingFaceTB/SmolLM2-135M", "dtype": "float32"}


def front_matter(card: str) -> dict[str, Any]:
    _, text, _ = card.split("---\n", 2)
    return dict(yaml.safe_load(text))


def section(card: str, heading: str) -> str:
    return card.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]


def on_one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_synthetic_world_is_called_synthetic(finished_run: Finished) -> None:
    card = model_card(ExportedModel(finished_run(name="first"), "ppo", "whole", chats=True))
    front = front_matter(card)
    assert front.pop("model-index")[0]["name"] == "first"
    assert front == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "rlhf_lightning", "ppo", "synthetic"],
    }
    assert "# first: ppo\n" in card
    assert "> **Synthetic.** All data are of the courtesy world" in card
    assert "artificial language only" in section(card, "Limits")
    assert "no written constitution" in section(card, "Data")
    assert "1794 prompts" in section(card, "Data")


CONSTITUTIONAL = ("pipeline=constitutional", "constitution=hhh")


def test_what_models_made_by_a_constitution_is_said(finished_run: Finished) -> None:
    run = finished_run(*CONSTITUTIONAL)
    cards = {
        stage: model_card(ExportedModel(run, stage, "whole", True))
        for stage in ("sft", "revision_sft", "reward_model", "ppo")
    }
    said = {stage: on_one_line(section(card, "Data")) for stage, card in cards.items()}
    # The principles of harmless (2), helpful (1) and honest (2), and one of its own.
    revised = "The constitution was hhh (6 principles): responses were critiqued and revised by its principles"
    assert "no written constitution and no AI feedback" in said["sft"]
    assert f"{revised}." in said["revision_sft"]
    for stage in ("reward_model", "ppo"):
        assert f"{revised} and a model (base) compared responses under it." in said[stage]


def test_a_judge_on_its_own_is_named(finished_run: Finished) -> None:
    server = ("judge=openai", "judge.base_url=http://localhost:1/v1", "judge.model=some_judge")
    run = finished_run("pipeline=rlaif", "constitution=polite", *server)
    data = on_one_line(section(model_card(ExportedModel(run, "ppo", "whole", chats=True)), "Data"))
    assert r"The constitution was polite (1 principle): a model (some\_judge) compared responses under it." in data


@pytest.mark.parametrize("overrides", [("pipeline=constitutional", "constitution=none"), ("pipeline=rlhf",)])
def test_without_principles_there_was_no_constitution(finished_run: Finished, overrides: tuple[str, ...]) -> None:
    card = model_card(ExportedModel(finished_run(*overrides), "ppo", "whole", chats=True))
    assert "no written constitution and no AI feedback" in section(card, "Data")


def test_a_policy_stands_beside_the_one_it_started_from_with_intervals(finished_run: Finished) -> None:
    run = finished_run()
    figures = section(model_card(ExportedModel(run, "ppo", "whole", chats=True)), "Figures")
    assert "|  | iid: sft | iid: ppo | ood: sft | ood: ppo |" in figures
    assert "| gold reward | -0.25 [-0.75, +0.25] | +1.50 [+1.00, +2.00] | -0.25" in figures
    assert "| KL, nats | 1.5 | 1.5 | 1.5 | 1.5 |" in figures  # no interval was computed
    start = section(model_card(ExportedModel(run, "sft", "whole", chats=True)), "Figures")
    assert "|  | iid: sft | ood: sft |" in start


def test_the_hub_reads_the_models_own_figures_split_by_split(finished_run: Finished) -> None:
    card = model_card(ExportedModel(finished_run(name="first", data=HUB_DATA), "ppo", "whole", chats=True))
    found = ModelCard(card).data
    assert found.model_name == "first"
    assert [
        (result.dataset_type, result.dataset_split, result.metric_type, result.metric_value)
        for result in found.eval_results
    ] == [
        ("Anthropic/hh-rlhf", split, metric, value)
        for split in ("iid", "ood")
        for metric, value in (("gold_reward", 1.5), ("kl", 1.5))
    ]


def test_a_reward_model_stands_beside_its_baselines(finished_run: Finished) -> None:
    card = model_card(ExportedModel(finished_run(), "reward_model", "whole", chats=True))
    assert front_matter(card)["pipeline_tag"] == "text-classification"
    (result,) = front_matter(card)["model-index"][0]["results"]
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("accuracy", 0.6), ("lift", -0.05)]
    assert "intervals over the 29 held-out pairs" in section(card, "Figures")
    assert "| accuracy | 60.0% [40.0%, 80.0%] |" in section(card, "Figures")
    assert "does not beat the better of two trivial baselines" in section(card, "Limits")
    assert "113 pairs" in section(card, "Data")
    assert "pad on the right" in section(card, "Open it")


def test_an_adapter_names_its_base_and_data_of_the_hub(finished_run: Finished) -> None:
    run = finished_run(data=HUB_DATA, model=HUB_MODEL)
    adapter = model_card(
        ExportedModel(run, "ppo", "adapter", chats=False, base="HuggingFaceTB/SmolLM2-135M", method="prompt_tuning")
    )
    front = front_matter(adapter)
    del front["model-index"]
    assert front == {
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["rlhf", "rlhf_lightning", "ppo", "prompt_tuning"],
        "base_model": "HuggingFaceTB/SmolLM2-135M",
        "base_model_relation": "adapter",
        "datasets": ["Anthropic/hh-rlhf"],
    }
    assert "AutoPeftModelForCausalLM" in section(adapter, "Open it")
    assert "padded on the left" in section(adapter, "Open it")
    assert "apply_chat_template" not in adapter
    assert "ynthetic" not in adapter
    merged = model_card(ExportedModel(run, "ppo", "merged", False, "HuggingFaceTB/SmolLM2-135M", "lora"))
    assert front_matter(merged)["base_model_relation"] == "finetune"
    assert "trained as an adapter (lora), which is merged" in merged
    assert "peft import" not in merged


def test_a_base_on_this_machine_is_no_hub_id(finished_run: Finished) -> None:
    card = model_card(ExportedModel(finished_run(), "ppo", "adapter", True, base="/home/me/base", method="lora"))
    assert "base_model" not in front_matter(card)
    assert "needs its base model: /home/me/base." in card


def test_nothing_in_a_run_can_write_markup(finished_run: Finished) -> None:
    run = finished_run(
        name="<script>alert(1)</script>",
        notes="one | two\n\n# Heading `code` [link](http://x)\n````\nout of the block",
        tags=["```", "</pre>"],
    )
    card = model_card(ExportedModel(run, "ppo", "whole", chats=True))
    outside = card.split("---\n", 2)[2].replace(fence_of(card), "")
    assert "<script>" not in outside
    assert r"\<script\>alert\(1\)\</script\>: ppo" in outside
    assert r"one \| two \# Heading \`code\` \[link\]\(http://x\) \`\`\`\` out of the block" in outside
    assert front_matter(card)["model-index"][0]["name"] == run.config["name"]
    config = yaml.safe_load(fence_of(card).split("\n", 1)[1].rsplit("\n", 1)[0])
    assert config["notes"] == run.config["notes"]
    assert "paths" not in config


def fence_of(card: str) -> str:
    """The block of the config, by the rule of CommonMark: up to the first line of as many backticks."""
    lines = section(card, "Config").strip().splitlines()
    fence = lines[0].removesuffix("yaml")
    assert set(fence) == {"`"}
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == fence)
    assert end == len(lines) - 1
    return "\n".join(lines)


def test_secrets_are_left_out(finished_run: Finished) -> None:
    run = finished_run(
        notes="token=hidden1",
        optimizer={"_target_": "mine.Adam", "api_key": "hidden2", "url": "https://me:hidden3@host/x"},
    )
    origin = {
        **(run.provenance or {}),
        "overrides": ["optimizer.api_key=hidden4", "notes=token=hidden5", "kl.coef=0.1"],
    }
    run.write_json(PROVENANCE, origin)
    card = model_card(ExportedModel(run, "ppo", "whole", chats=True))
    assert "hidden" not in card
    assert "api_key: <redacted>" in card
    assert "rlhf train optimizer.api_key=" in card
    assert "kl.coef=0.1" in card


def test_a_run_without_figures_or_origin_says_so(finished_run: Finished) -> None:
    run = finished_run()
    (run.path / METRICS).unlink()
    (run.path / PROVENANCE).unlink()
    run.update_status(state="failed")
    card = model_card(ExportedModel(run, "ppo", "whole", chats=True))
    assert "model-index" not in front_matter(card)
    assert "It was not evaluated." in section(card, "Figures")
    assert "The run is failed" in section(card, "Limits")
    assert "no record of where it came from" in section(card, "Origin")


def test_files_are_named_without_their_folders(finished_run: Finished) -> None:
    run = finished_run(data={"kind": "files", "preferences": "/home/me/pairs_1.jsonl"})
    run.write_json(PROVENANCE, {**(run.provenance or {}), "stages": {"sft": {"data": {"preferences": "content a1b2"}}}})
    card = model_card(ExportedModel(run, "ppo", "whole", chats=True))
    assert r"- pairs\_1.jsonl: `a1b2`" in section(card, "Data")


@pytest.mark.parametrize(("text", "expected"), [("a*b_c", r"a\*b\_c"), ("x\n\ny", "x y"), ("&lt;", r"\&lt;")])
def test_escaped(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a", "yaml") == "```yaml\na\n```"
    assert fenced("```\n````") == "`````\n```\n````\n`````"


def test_what_counts_as_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "directory").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub_id("gpt2") == "gpt2"
    assert hub_id("owner/name-1.0") == "owner/name-1.0"
    assert hub_id("/abs/name") is None
    assert hub_id("a/b/c") is None
    assert hub_id("directory") is None
    assert hub_id(None) is None
