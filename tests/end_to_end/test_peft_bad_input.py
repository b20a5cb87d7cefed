"""What a user can get wrong with adapters, met through the command line: one clear error, and what to do about it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from tiny_runs import finished_metrics, write_jsonl
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    MptConfig,
    MptForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from tuned import KINDS, peft, write_base, write_policy, write_reward

from rlhf_lightning.cli.main import main
from rlhf_lightning.experiment.run_directory import RunDirectory
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
    monkeypatch.setattr("rlhf_lightning.experiment.pipeline.draw_plots", lambda *_: [])
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
        (["peft=lora", "peft.rank=0"], ["peft.rank: expects a whole number >= 1, got 0"]),
        (["peft=lora", "peft.alpha=0"], ["peft.alpha: expects a number > 0, got 0"]),
        (["peft=lora", "peft.targets=[]"], ["peft.targets: expects"]),
        (["peft=lora", "peft.rnk=4"], ["peft.rnk: there is no such key", "did you mean peft.rank?"]),
        (["peft=lara"], ["peft: has no option 'lara'", "did you mean peft=lora?"]),
        (["peft.rank=4"], ["peft.rank: "]),
        (["peft=top_layers", "peft.layers=0"], ["peft.layers: expects a whole number >= 1, got 0"]),
        (["peft=prompt_tuning", "peft.virtual_tokens=0"], ["peft.virtual_tokens: expects a whole number >= 1"]),
        (["peft=lora", "peft.learning_rate_factor=-1"], ["peft.learning_rate_factor: expects a number > 0"]),
        (
            ["reference=adapter_off"],
            ["reference: peft=none trains all weights", "use reference=auto", "peft=lora"],
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
        (["model.share_backbone=true"], ["model.share_backbone: peft=none trains all weights", "peft=lora"]),
        (["model.share_backbone=maybe"], ["model.share_backbone: expects"]),
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


def test_more_layers_than_the_model_has(rlhf: Rlhf) -> None:
    refused(
        rlhf(*SFT, "peft=top_layers", "peft.layers=40"),
        "sft",
        "blocks, and 40 are to be trained",
        "where: peft.layers",
        "choose peft.layers from 1 to",
    )


def test_a_start_of_virtual_tokens_without_tokens(rlhf: Rlhf) -> None:
    refused(rlhf(*SFT, "peft=prompt_tuning", "peft.init_text=' '"), "sft", "has no tokens", "where: peft.init_text")


@pytest.fixture
def records(here: Path) -> Path:
    return write_jsonl(here / "records.jsonl", [{"prompt": f"w{3 + n % 40}", "reply": "w10 w11"} for n in range(40)])


FILES = (*QUICK, "pipeline=sft", "data=files", "model=hub", "data.demonstrations=records.jsonl")


@pytest.mark.usefixtures("records")
def test_ia3_on_an_architecture_that_nobody_has_described(rlhf: Rlhf, words: PreTrainedTokenizerBase) -> None:
    config = MptConfig(vocab_size=50, d_model=16, n_heads=2, n_layers=1, max_seq_len=64)
    write_base(MptForCausalLM(config), words, Path("odd"))
    refused(
        rlhf(*FILES, "model.name_or_path=odd", "peft=ia3"),
        "sft",
        "Which layers of a mpt model IA3 should scale is not known",
        "use peft=lora",
    )


@pytest.mark.usefixtures("records")
def test_virtual_tokens_before_a_model_that_reads_both_ways(rlhf: Rlhf, words: PreTrainedTokenizerBase) -> None:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    write_base(BertForMaskedLM(config), words, Path("odd"))
    code, said = rlhf(*FILES, "model.name_or_path=odd", "peft=prompt_tuning")
    assert code == 1
    assert "Traceback" not in said


@pytest.mark.usefixtures("mine")
def test_another_kind_than_the_policy_comes_with(rlhf: Rlhf) -> None:
    refused(
        rlhf(*PPO, "peft.rank=8"),
        "ppo",
        "The model comes with an adapter (lora, rank 4, alpha 8, on",
        "peft asks for another (lora, rank 8, alpha 8, on",
        "rlhf export RUN_DIR --merge",
    )


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


def test_a_reward_model_of_another_base_where_all_must_share(
    rlhf: Rlhf, mine: Path, tiny: RunDirectory, courtesy_words: PreTrainedTokenizerBase
) -> None:
    shutil.rmtree(mine / "reward")
    write_reward(tiny.path / "sft", peft("lora"), courtesy_words, mine / "reward")
    refused(rlhf(*PPO, "model.share_backbone=true"), "ppo", "policy and reward model start from different base models")


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


def test_a_base_of_other_shapes(
    rlhf: Rlhf, mine: Path, make_policy: Callable[..., PreTrainedModel], courtesy_words: PreTrainedTokenizerBase
) -> None:
    shutil.rmtree(mine / "base")
    write_base(make_policy(vocab_size=len(courtesy_words)), courtesy_words, mine / "base")
    refused(rlhf(*PPO), "ppo", "trained on another base model", "has other shapes")


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


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-50])


def without_name(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))


DAMAGES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "half the weights": ("adapter_model.safetensors", cut, "The adapter cannot be read"),
    "no weights": ("adapter_model.safetensors", Path.unlink, "The adapter cannot be read"),
    "half a config": ("adapter_config.json", cut, "The adapter cannot be read"),
    "half an identity": ("base_model.json", cut, "The adapter cannot be read"),
    "no name of a base": ("adapter_config.json", without_name, "does not say which model it belongs to"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(damage: str, rlhf: Rlhf, mine: Path) -> None:
    name, spoil, expected = DAMAGES[damage]
    spoil(mine / "policy" / name)
    refused(rlhf(*PPO), "ppo", expected, "mine/policy")


@pytest.mark.usefixtures("mine")
def test_the_two_adapters_in_each_others_place(rlhf: Rlhf) -> None:
    swapped = ("ppo.policy_from=mine/reward", "ppo.reward_from=mine/policy")
    refused(rlhf(*PPO, *swapped), "ppo", "the adapter of a reward model or classifier, not of a policy", "mine/reward")
    shutil.rmtree("outputs")
    refused(rlhf(*PPO, swapped[1]), "ppo", "the adapter of a policy, not of a reward model", "mine/policy")


@pytest.mark.slow
@pytest.mark.usefixtures("records")
@pytest.mark.parametrize("kind", KINDS)
def test_tied_embeddings_are_no_hindrance(
    kind: str, rlhf: Rlhf, make_policy: Callable[..., PreTrainedModel], words: PreTrainedTokenizerBase
) -> None:
    """Virtual tokens stand beside the table of embeddings, which the head shares, and never in it."""
    write_base(make_policy(tie_word_embeddings=True), words, Path("tied"))
    small = {"top_layers": ["peft.layers=1"], "prompt_tuning": ["peft.virtual_tokens=3"]}.get(kind, [])
    lengths = ("data.max_prompt_length=16", "data.max_reply_length=16")
    code, said = rlhf(*FILES, *lengths, "model.name_or_path=tied", f"peft={kind}", *small)
    assert code == 0, said
