"""What a user can get wrong with adapters, met through the command line: one clear error, and what to do about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import finished_metrics, write_jsonl
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from tuned import peft, write_base, write_policy, write_reward

from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.worlds.courtesy import asset_path

Rlhf = Callable[..., tuple[int, str]]

QUICK = ("debug=tiny", "logger=none")
SFT = (*QUICK, "pipeline=sft", "data.demonstrations=64")
LORA = ("peft=lora", "peft.rank=4", "peft.alpha=8")
PPO = (
    *QUICK,
    "pipeline=ppo",
    "ppo.iterations=1",
    "ppo.policy_from=mine/policy",
    "ppo.reward_from=mine/reward",
    *LORA,
)
"""As the models in `mine` were trained."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory as the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def rlhf(capsys: pytest.CaptureFixture[str]) -> Rlhf:
    """Types `rlhf train ...`: the exit code, and what was said, without line breaks."""

    def type_in(*overrides: str) -> tuple[int, str]:
        capsys.readouterr()
        code = main(["train", *overrides])
        return code, " ".join(capsys.readouterr().err.split())

    return type_in


@pytest.fixture
def courtesy_words() -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(asset_path())
    return tokenizer


@pytest.fixture
def mine(here: Path, courtesy_words: PreTrainedTokenizerBase) -> Path:
    """A policy and a reward model that were trained with `LORA` on a copy of the embedded base, in `mine/`."""
    directory = here / "mine"
    shutil.copytree(asset_path(), directory / "base")
    write_policy(directory / "base", peft("lora"), courtesy_words, directory / "policy")
    write_reward(directory / "base", peft("lora"), courtesy_words, directory / "reward")
    return directory


# What can be known before anything is loaded.


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            [
                "peft=lora",
                "peft.rank=0",
                "peft.alpha=0",
                "peft.targets=[]",
                "peft.rnk=4",
                "peft.learning_rate_factor=-1",
            ],
            [
                "peft.rank: expects a whole number >= 1, got 0",
                "peft.alpha: expects a number > 0, got 0",
                "peft.targets: expects",
                *("peft.rnk: there is no such key", "did you mean peft.rank?"),
                "peft.learning_rate_factor: expects a number > 0",
            ],
        ),
        (["peft=lara"], ["peft: has no option 'lara'", "did you mean peft=lora?"]),
        (
            ["peft=top_layers", "peft.layers=0", "model.share_backbone=maybe"],
            ["peft.layers: expects a whole number >= 1, got 0", "model.share_backbone: expects"],
        ),
        (["peft=prompt_tuning", "peft.virtual_tokens=0"], ["peft.virtual_tokens: expects a whole number >= 1"]),
        (
            ["peft.rank=4", "reference=adapter_off", "model.share_backbone=true"],
            [
                "peft.rank: ",
                *("reference: peft=none trains all weights", "use reference=auto", "peft=lora"),
                "model.share_backbone: peft=none trains all weights",
            ],
        ),
        (
            ["reference=adapter_off", "peft=top_layers"],
            ["reference: peft=top_layers has no adapter that could be switched off", "use reference=auto"],
        ),
        (["reference=shared_trunk"], ["reference: peft=none trains all weights", "peft=top_layers"]),
        (
            ["reference=shared_trunk", "peft=lora"],
            ["reference: peft=lora trains no layers that could be copied", "peft=top_layers"],
        ),
        (
            ["reference=adapter_off", "peft=lora", "model.share_backbone=false"],
            ["model.share_backbone: reference=adapter_off lives on the policy's own weights", "frozen_copy"],
        ),
        (["peft=qlora"], ["peft: weights in 4 bits need a CUDA GPU", "use peft=lora"]),
        (["peft=qlora", "peft.quantization=nf5"], ["peft.quantization: expects", "nf4"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "=" in value[0] else "",
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_made(
    rlhf: Rlhf, here: Path, overrides: list[str], expected: list[str]
) -> None:
    code, said = rlhf(*overrides)
    assert code == 2, said
    assert "nothing was loaded or started" in said
    for words in expected:
        assert words in said, said
    assert "Traceback" not in said
    assert list(here.iterdir()) == []


def test_four_bits_without_a_gpu_that_the_machine_does_not_have(rlhf: Rlhf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, said = rlhf("peft=qlora", "trainer.accelerator=auto")
    assert code == 2
    assert "CUDA" in said
    assert "peft=lora" in said


# What comes to light when a model is opened.


def refused(told: tuple[int, str], stage: str, *expected: str) -> None:
    code, said = told
    assert code == 1, said
    for words in expected:
        assert words in said, said
    assert "Traceback" not in said
    assert "where: " in said
    assert "fix: " in said
    run = RunDirectory.open(next(path.parent for path in Path("outputs").rglob("status.json")))
    assert (run.status.state, run.status.stage) == ("failed", stage)


def test_layers_that_the_model_does_not_have(rlhf: Rlhf) -> None:
    refused(
        rlhf(*SFT, "peft=lora", "peft.targets=[q_porj,v_proj]"),
        "sft",
        "LlamaForCausalLM has no linear layer 'q_porj' in its blocks; did you mean 'q_proj'?",
        "where: peft.targets",
        "choose among q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
    )


@pytest.fixture
def records(here: Path) -> Path:
    return write_jsonl(here / "records.jsonl", [{"prompt": f"w{3 + n % 40}", "response": "w10 w11"} for n in range(40)])


FILES = (*QUICK, "pipeline=sft", "data=files", "model=hub", "data.demonstrations=records.jsonl")


@pytest.mark.usefixtures("records")
def test_virtual_tokens_before_a_model_that_reads_both_ways(rlhf: Rlhf, words: PreTrainedTokenizerBase) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    write_base(BertForMaskedLM(config), words, Path("odd"))
    code, said = rlhf(*FILES, "model.name_or_path=odd", "peft=prompt_tuning")
    assert code == 1
    assert "Traceback" not in said


def test_a_whole_reward_model_where_all_must_share(rlhf: Rlhf, mine: Path, tiny: RunDirectory) -> None:
    shutil.rmtree(mine / "reward")
    (mine / "reward").symlink_to(tiny.path / "reward_model")
    refused(
        rlhf(*PPO, "model.share_backbone=true"),
        "ppo",
        "cannot share the policy's weights: the reward model is a whole model, not an adapter",
        "model.share_backbone=true, ",
        "or set model.share_backbone=auto",
    )


def other_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    save_file({n: w * 1.01 for n, w in weights.items()}, base / "model.safetensors", metadata={"format": "pt"})


def test_a_base_of_other_weights(rlhf: Rlhf, mine: Path) -> None:
    other_weights(mine / "base")
    refused(
        rlhf(*PPO),
        "ppo",
        "trained on another base model",
        "the same shapes and other weights",
        "where: ",
        "mine/policy",
        "put the base back that the adapter was trained on",
    )


def test_a_base_that_is_gone_is_the_configured_one_if_that_is_the_same(rlhf: Rlhf, mine: Path) -> None:
    shutil.rmtree(mine / "base")
    code, said = rlhf(*PPO)
    assert code == 0, said
    assert f"The base of mine/policy is not at {mine / 'base'}; trying {asset_path()}" in said
    run = RunDirectory.open(Path("outputs/latest").resolve())
    assert finished_metrics(run)["stages"]["ppo"]["reference"] == "adapter_off"


def test_a_base_that_is_gone_is_not_replaced_by_the_configured_one_if_that_is_another(
    rlhf: Rlhf, mine: Path, tiny: RunDirectory
) -> None:
    shutil.rmtree(mine / "base")
    prompts = write_jsonl(Path("prompts.jsonl"), [{"prompt": f"please burn the engine {n}"} for n in range(20)])
    told = ("model=hub", f"model.name_or_path={tiny.path / 'sft'}", "data=files", f"data.prompts={prompts}")
    refused(rlhf(*PPO, *told), "ppo", "is not at", "trained on another base model", "the same shapes and other weights")


def test_half_of_an_adapter(rlhf: Rlhf, mine: Path) -> None:
    weights = mine / "policy" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    refused(rlhf(*PPO), "ppo", "The adapter cannot be read", "mine/policy")


@pytest.mark.usefixtures("mine")
def test_adapters_in_each_others_place(rlhf: Rlhf) -> None:
    swapped = ("ppo.policy_from=mine/reward", "ppo.reward_from=mine/policy")
    refused(rlhf(*PPO, *swapped), "ppo", "the adapter of a reward model or classifier, not of a policy", "mine/reward")


@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("kind", ["dora", "ia3", "prompt_tuning"])
def test_tied_embeddings_are_no_hindrance(
    kind: str, rlhf: Rlhf, make_policy: Callable[..., PreTrainedModel], words: PreTrainedTokenizerBase
) -> None:
    """Virtual tokens stand beside the table of embeddings, which the head shares, and never in it."""
    write_base(make_policy(tie_word_embeddings=True), words, Path("tied"))
    small = ["peft.virtual_tokens=3"] if kind == "prompt_tuning" else []
    lengths = ("data.max_prompt_length=16", "data.max_response_length=16")
    code, said = rlhf(*FILES, *lengths, "model.name_or_path=tied", f"peft={kind}", *small)
    assert code == 0, said
