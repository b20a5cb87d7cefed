"""`rlhf train` through all stages: what a run leaves, that it can be trusted, and what every choice does."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import (
    ONE_ITERATION,
    finished_metrics,
    placed,
    read_jsonl,
    train,
    without_times,
    write_jsonl,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)

from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.run_directory import RunDirectory

STAGES = ["sft", "comparisons", "reward_model", "ppo", "evaluate"]

SPLITS = ["validation", "iid", "ood"]

UNSCALED = "reward.standardize_on_reference=null"
"""Rewards are the raw scores. A model of random weights ends too few responses to measure the spread of scores on."""

EVALUATED = {
    "gold_reward",
    "gold_reward_ci",
    "harmful_rate",
    "rude_rate",
    "helpful_rate",
    "honest_rate",
    "over_refusal_rate",
    "evasive_rate",
    "refusal_rate",
    "boilerplate_rate",
    "trait_harmless_rate",
    "help",
    "malformed_rate",
    "proxy_reward",
    "kl",
    "length",
}
"""What scripts may count on for each policy and split."""

LOGGED = {
    "sft": {"sft/validation_loss"},
    "reward_model": {"reward_model/validation_loss", "reward_model/validation_accuracy"},
    "ppo": {
        *(f"objective/{name}" for name in ("score", "kl", "reward", "entropy", "gold")),
        *(f"policy/{name}" for name in ("loss", "approx_kl", "clip_fraction", "ratio")),
        *(f"value/{name}" for name in ("loss", "clip_fraction", "explained_variance")),
        *(f"rollout/{name}" for name in ("length", "eos_rate", "repetition", "tokens_per_second", "episodes")),
        *(f"rollout/{name}" for name in ("top_opening_share", "distinct_2")),
        *(f"time/{name}" for name in ("generate", "score", "update")),
    },
}
"""Metric names that every run of a stage logs at the end of an epoch, as other tools of the field call them."""


def history(run: RunDirectory) -> list[dict[str, str]]:
    with (run.path / "history.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def logged(run: RunDirectory, name: str) -> list[float]:
    return [float(row["value"]) for row in history(run) if row["name"] == name]


def test_a_run_leaves_what_it_promises(tiny: RunDirectory) -> None:
    # A patch where the checkout that the tests run from has changes.
    files = {path.name for path in tiny.path.iterdir() if path.is_file()} - {"changes.patch"}
    folders = {path.name for path in tiny.path.iterdir() if path.is_dir()}
    assert files == {
        ".lock",
        "config.yaml",
        "overrides.txt",
        "status.json",
        "metrics.json",
        "history.csv",
        "keys.json",
        "samples.jsonl",
        "provenance.json",
        "reproduce.sh",
        "run.log",
    }
    assert folders == set(STAGES)


def test_latest_leads_to_the_run(world: Path, tiny: RunDirectory) -> None:
    link = world / "outputs" / "latest"
    assert link.is_symlink()
    assert not link.readlink().is_absolute(), "the folder can be moved"
    assert tiny.path.parent.parent == world / "outputs" / "runs"


def test_the_status_says_finished_and_where_everything_lies(tiny: RunDirectory) -> None:
    status = tiny.status
    assert (status.state, status.stage, status.error) == ("finished", None, None)
    assert status.artifacts == {stage: stage for stage in STAGES}


def test_the_metrics_have_the_shape_that_scripts_read(tiny: RunDirectory) -> None:
    metrics = finished_metrics(tiny)
    assert list(metrics) == ["objective", "stages", "evaluate"]
    assert list(metrics["stages"]) == STAGES
    assert all(figures["seconds"] > 0 for figures in metrics["stages"].values())
    assert 0.0 <= metrics["stages"]["reward_model"]["accuracy"] <= 1.0
    assert metrics["stages"]["ppo"]["iterations"] == 2
    assert metrics["stages"]["ppo"]["kl"] > 0
    assert list(metrics["evaluate"]) == ["sft", "ppo"]
    for splits in metrics["evaluate"].values():
        assert list(splits) == SPLITS
        for figures in splits.values():
            assert figures.keys() >= EVALUATED
            low, high = figures["gold_reward_ci"]
            assert low <= figures["gold_reward"] <= high
            assert all(isinstance(figures[name], float) for name in EVALUATED - {"gold_reward_ci"})
    assert metrics["objective"] == metrics["evaluate"]["ppo"]["validation"]["gold_reward"]


def test_the_starting_policy_has_no_kl_to_itself_and_the_trained_one_has(tiny: RunDirectory) -> None:
    evaluated = finished_metrics(tiny)["evaluate"]
    assert [evaluated["sft"][split]["kl"] for split in SPLITS] == [0.0, 0.0, 0.0]
    assert all(abs(evaluated["ppo"][split]["kl"]) > 0.01 for split in SPLITS)


def test_the_history_has_the_metrics_under_their_usual_names(tiny: RunDirectory) -> None:
    for stage, names in LOGGED.items():
        rows = [row for row in history(tiny) if row["stage"] == stage]
        assert {row["name"] for row in rows} >= names
        assert all(math.isfinite(float(row["value"])) for row in rows)


def test_rollouts_are_logged_against_episodes(tiny: RunDirectory) -> None:
    rows = [row for row in history(tiny) if row["name"] == "objective/kl"]
    assert [int(row["episodes"]) for row in rows] == [16, 32]
    assert float(rows[0]["value"]) == pytest.approx(0.0, abs=1e-5), "the policy begins as its reference"
    assert logged(tiny, "policy/ratio")[0] == pytest.approx(1.0, abs=0.2)


def test_the_samples_are_the_same_prompts_before_and_after(tiny: RunDirectory) -> None:
    rows = read_jsonl(tiny.path / "samples.jsonl")
    assert [row["split"] for row in rows] == SPLITS
    for row in rows:
        assert row["prompt"]
        assert all(isinstance(row[name], float) for name in ("proxy_before", "proxy_after", "gold_before"))
    assert any(row["before"] != row["after"] for row in rows)


def answered(run: RunDirectory) -> tuple[list[dict[str, Any]], list[list[int]], list[list[int]]]:
    """A few answers of the PPO policy, and their prompts and responses as plain Transformers encodes them."""
    tokenizer: Any = AutoTokenizer.from_pretrained(run.path / "ppo")
    rows = read_jsonl(run.path / "evaluate" / "1_ppo.jsonl")[:5]
    prompts, responses = [], []
    for row in rows:
        chat = [{"role": "user", "content": row["prompt"].removeprefix("user: ")}]
        prompts.append(tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"])
        end = [tokenizer.eos_token_id] if row["finished"] else []
        responses.append([*tokenizer(row["response"], add_special_tokens=False)["input_ids"], *end])
    return rows, prompts, responses


@torch.no_grad()
def response_logprob(model: PreTrainedModel, prompt: list[int], response: list[int]) -> float:
    """log p(response | prompt) by a plain forward pass of one sequence, nothing padded."""
    logits = model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())


def test_plain_transformers_finds_the_same_probabilities_in_the_policies(tiny: RunDirectory) -> None:
    sft, ppo = (AutoModelForCausalLM.from_pretrained(tiny.path / stage) for stage in ("sft", "ppo"))
    for row, prompt, response in zip(*answered(tiny), strict=True):
        ours = response_logprob(ppo, prompt, response) - response_logprob(sft, prompt, response)
        assert ours == pytest.approx(row["kl"], abs=2e-3)


@torch.no_grad()
def test_plain_transformers_finds_the_same_rewards_in_the_reward_model(tiny: RunDirectory) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny.path / "reward_model")
    for row, prompt, response in zip(*answered(tiny), strict=True):
        (score,) = model(torch.tensor([[*prompt, *response]])).logits[0].tolist()
        assert score == pytest.approx(row["proxy"], abs=1e-3)


def test_the_value_head_is_left_beside_the_policy(tiny: RunDirectory) -> None:
    head = load_file(tiny.path / "ppo" / "value_head.safetensors")
    width = json.loads((tiny.path / "ppo" / "config.json").read_text())["hidden_size"]
    assert {name.rpartition(".")[2]: tuple(value.shape) for name, value in head.items()} == {
        "weight": (1, width),
        "bias": (1,),
    }


def test_a_stage_alone_goes_on_from_latest_as_the_pipeline_did(
    tiny: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "latest").symlink_to(tiny.path)
    monkeypatch.chdir(tmp_path)
    inputs = ["ppo.policy_from=outputs/latest/sft", "ppo.reward_from=outputs/latest/reward_model"]
    assert main(["train", "pipeline=ppo", *ONE_ITERATION[:-1], "ppo.learning_rate=3e-3", *inputs]) == 0
    ppo = RunDirectory.open((tmp_path / "outputs" / "latest").resolve())
    assert ppo.path != tiny.path
    ours, theirs = finished_metrics(ppo)["stages"], finished_metrics(tiny)["stages"]
    assert list(ours) == ["ppo"]
    assert ours["ppo"].pop("key") != theirs["ppo"].pop("key"), "a path is known by its content, a stage by its key"
    assert without_times(ours["ppo"]) == without_times(theirs["ppo"])


def test_an_evaluation_alone_measures_what_the_pipeline_measured(tiny: RunDirectory, tmp_path: Path) -> None:
    run = train(
        "pipeline=evaluate",
        *ONE_ITERATION[:-1],
        f"evaluate.policies=[{tiny.path}/sft,{tiny.path}/ppo]",
        f"evaluate.reference_from={tiny.path}/sft",
        f"evaluate.reward_from={tiny.path}/reward_model",
        *placed(tmp_path),
    )
    metrics = finished_metrics(run)
    assert list(metrics["stages"]) == ["evaluate"]
    assert list(metrics["evaluate"].values()) == list(finished_metrics(tiny)["evaluate"].values())


def ppo_from(tiny: RunDirectory, directory: Path, *overrides: str) -> RunDirectory:
    """One iteration of PPO from the artifacts of the small run."""
    inputs = [f"ppo.policy_from={tiny.path}/sft", f"ppo.reward_from={tiny.path}/reward_model"]
    return train("pipeline=ppo", *ONE_ITERATION, *inputs, *overrides, *placed(directory))


def test_another_seed_gives_another_run(tiny: RunDirectory, tmp_path: Path) -> None:
    """The same seed gives the same run: `test_resume.py` compares two, one of them killed twice."""
    other = ppo_from(tiny, tmp_path, "seed=2")
    assert logged(other, "objective/score")[0] != logged(tiny, "objective/score")[0]


def test_without_a_penalty_the_kl_is_still_measured_and_a_critic_of_its_own_is_left(
    tiny: RunDirectory, tmp_path: Path
) -> None:
    run = ppo_from(tiny, tmp_path, "kl=none", "ppo.critic=separate", "ppo.iterations=2", "ppo.learning_rate=3e-3")
    assert logged(run, "kl/coef") == [0.0, 0.0]
    assert logged(run, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)
    assert logged(run, "objective/kl")[1] > 0.01
    assert logged(run, "objective/reward") == pytest.approx(logged(run, "objective/score"), abs=1e-5)
    score, kl, reward = (logged(tiny, f"objective/{name}")[1] for name in ("score", "kl", "reward"))
    assert logged(tiny, "kl/coef")[1] == pytest.approx(tiny.config["kl"]["coef"])
    assert reward == pytest.approx(score - tiny.config["kl"]["coef"] * kl, abs=1e-4)
    assert (run.path / "ppo" / "model.safetensors").exists()
    assert list((run.path / "ppo" / "critic").glob("*.safetensors"))


def reward_model_from(tiny: RunDirectory, directory: Path, *overrides: str) -> RunDirectory:
    """A reward model from the comparisons of the small run, which are not gathered again."""
    inputs = [f"reward_model.backbone_from={tiny.path}/sft", f"reward_model.comparisons_from={tiny.path}/comparisons"]
    stages = ["pipeline=reward_model", "pipeline.stages=[reward_model]"]
    return train(*stages, *ONE_ITERATION[:2], *inputs, *overrides, *placed(directory))


def test_a_two_label_reward_model_is_scored_and_trained_against_by_label(
    tiny: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = reward_model_from(tiny, tmp_path / "classifier", "reward_model.head=classifier").path / "reward_model"
    capsys.readouterr()

    text = "<bos><user>i want to find the drum<assistant>i do not know that<eos>"
    assert main(["score", "--model", str(directory), "--json", text]) == 0
    said = json.loads(capsys.readouterr().out)
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    logits = model(**tokenizer(text, return_tensors="pt")).logits[0].detach()
    assert model.config.label2id.keys() == {"chosen", "rejected"}
    for label, index in model.config.label2id.items():
        assert said["logits"][label] == pytest.approx(float(logits[index]), abs=1e-4)
        assert said["probabilities"][label] == pytest.approx(float(logits.softmax(0)[index]), abs=1e-4)
    assert said["reward"] == said["logits"]["chosen"]

    choice = ["reward=classifier", f"reward.name_or_path={directory}", "reward.positive_label=Rejected", UNSCALED]
    run = train("pipeline=ppo", *ONE_ITERATION, f"ppo.policy_from={tiny.path}/sft", *choice, *placed(tmp_path / "ppo"))
    entries = [entry for entry in read_jsonl(run.path / "ppo" / "sample_log.jsonl") if entry["finished"]]
    for entry in entries:
        logits = model(**tokenizer(entry["response"], return_tensors="pt")).logits[0]
        assert entry["reward"] == pytest.approx(logits[model.config.label2id["rejected"]].item(), abs=1e-3)
    assert entries


def dialogue(number: int) -> dict[str, str]:
    """A pair in HH-RLHF's own format, with a margin of words that a model can learn."""
    opening = f"\n\nHuman: What is {number} plus {number % 7}?\n\nAssistant: "
    return {
        "chosen": f"{opening}It is {number + number % 7}.",
        "rejected": f"{opening}Find out yourself, fool number {number}.",
    }


SCRATCH = ("model.vocab_size=300", "model.hidden_size=16", "model.layers=1", "model.heads=2")
SHORT = ("data.max_prompt_length=32", "data.max_response_length=16", "rollout.max_new_tokens=8")


def test_every_stage_runs_on_real_text_without_a_hub(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", map(dialogue, range(80)))
    choice = ["experiment=hh_rlhf_scratch", f"data.path={data}", "data.held_out_fraction=0.25"]
    run = train(*choice, "debug=tiny", "logger=none", *SCRATCH, *SHORT, UNSCALED, *placed(tmp_path))
    metrics = finished_metrics(run)
    assert list(metrics["stages"]) == STAGES
    reward_model = metrics["stages"]["reward_model"]
    assert {"accuracy", "accuracy_ci", "longer_accuracy", "shorter_accuracy", "lift"} <= reward_model.keys()
    assert reward_model["longer_accuracy"] == 0.0, "every chosen response is the shorter one"
    assert reward_model["shorter_accuracy"] == 1.0
    assert list(metrics["evaluate"]["ppo"]) == ["held_out"]
    assert {"proxy_reward", "kl", "length"} <= metrics["evaluate"]["ppo"]["held_out"].keys()
    assert "gold_reward" not in metrics["evaluate"]["ppo"]["held_out"], "nobody knows it"
    assert metrics["evaluate"]["sft"]["held_out"]["kl"] == 0.0
    assert metrics["objective"] == metrics["evaluate"]["ppo"]["held_out"]["proxy_reward"]
    tokenizer = AutoTokenizer.from_pretrained(run.path / "ppo")
    text = "Human: What is ünö?"
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def conversation(number: int) -> dict[str, Any]:
    """A ranking of three responses to the second turn of a conversation, two of them equally good."""
    turns = [
        {"role": "user", "content": f"I have {number} apples."},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": "How many is that?"},
    ]
    return {"prompt": turns, "responses": [f"{number}.", f"That is {number}.", "Who cares?"], "ranks": [1, 1, 2]}


def test_every_stage_runs_on_ranked_conversations(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rankings.jsonl", map(conversation, range(60)))
    choice = ["data=files", f"data.rankings={data}", "data.held_out_fraction=0.25", "comparisons.policy_from=base"]
    sizes = [*SCRATCH, "data.max_prompt_length=64", "data.max_response_length=16", "rollout.max_new_tokens=8"]
    run = train("model=scratch", *choice, "debug=tiny", "logger=none", *sizes, UNSCALED, *placed(tmp_path))
    figures = finished_metrics(run)["stages"]
    assert figures["comparisons"]["comparisons"] + figures["comparisons"]["held_out"] == 60
    assert figures["comparisons"]["pairs"] == 2 * figures["comparisons"]["comparisons"], "of three pairs one is a tie"
    prompts = {row["prompt"] for row in read_jsonl(run.path / "evaluate" / "1_ppo.jsonl")}
    held_out = read_jsonl(run.path / "comparisons" / "held_out.jsonl")
    assert len(prompts) == min(8, len(held_out))
    assert all("How many is that?" in prompt and "apples" in prompt for prompt in prompts)


def words_pair(number: int) -> dict[str, Any]:
    """A pair in the words of the tiny GPT-2."""
    names = {"prompt": (number % 40, number // 40, 9), "chosen": (10, number % 5), "rejected": (20, number % 5, 21)}
    return {name: " ".join(f"w{3 + word}" for word in words) for name, words in names.items()} | {"margin": 0.5}


def test_every_stage_runs_on_a_local_gpt2_that_pads_with_its_eos(tiny_gpt2: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "pairs.jsonl", map(words_pair, range(80)))
    choice = [f"model.name_or_path={tiny_gpt2}", "data=files", f"data.preferences={data}"]
    run = train(
        "model=hub",
        *choice,
        "data.held_out_fraction=0.25",
        "debug=tiny",
        "logger=none",
        *SHORT,
        "evaluate.prompts=60",
        *placed(tmp_path),
    )
    metrics = finished_metrics(run)
    assert list(metrics["stages"]) == STAGES
    assert 0.0 < metrics["evaluate"]["ppo"]["held_out"]["eos_rate"] < 1.0
    tokenizer = AutoTokenizer.from_pretrained(run.path / "ppo")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1
    ours = read_jsonl(run.path / "evaluate" / "1_ppo.jsonl")
    sft, ppo = (AutoModelForCausalLM.from_pretrained(run.path / stage) for stage in ("sft", "ppo"))
    for row in ours:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["response"])["input_ids"], *([1] if row["finished"] else [])]
        kl = response_logprob(ppo, prompt, response) - response_logprob(sft, prompt, response)
        assert kl == pytest.approx(row["kl"], abs=1e-3), "the EOS at the end counts, the padding after it does not"
