"""`rlhf export`: what it prints, and how it answers mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from rlhf_lightning.cli import export
from rlhf_lightning.cli.main import main
from rlhf_lightning.stages.run_directory import RunDirectory

CONFIG = {
    "name": "tiny",
    "notes": None,
    "data": {"kind": "courtesy"},
    "model": {"kind": "courtesy", "dtype": "float32"},
    "peft": {"kind": "lora"},
    "pipeline": {"stages": ["sft"]},
    "sft": {"policy_from": "base"},
    "evaluate": {"reference_from": "sft"},
}


@pytest.fixture
def run(tmp_path: Path, make_policy: Callable[..., PreTrainedModel], words: PreTrainedTokenizerFast) -> RunDirectory:
    """A finished run whose stage sft left a whole model."""
    directory = RunDirectory.create(tmp_path / "run", CONFIG, [])
    for saved in (make_policy(), words):
        saved.save_pretrained(directory.stage_dir("sft"))
    directory.add_artifact("sft", directory.path / "sft")
    directory.update_status(state="finished")
    return directory


def test_it_prints_where_everything_lies(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--to", str(tmp_path / "mine")]) == 0
    printed = capsys.readouterr().out
    assert f"The whole model of stage sft: {tmp_path / 'mine'}\n" in printed
    for name in ("README.md", "config.json", "model.safetensors", "tokenizer.json"):
        assert (tmp_path / "mine" / name).is_file()
        assert name in printed
    assert "kB" in printed


def test_merging_what_has_no_adapter_is_said_to_be_a_copy(
    run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(run.path), "--merge"]) == 0
    assert "there was no adapter to merge" in capsys.readouterr().out


def test_an_adapter_is_printed_with_its_base(
    run: RunDirectory, make_policy: Callable[..., PreTrainedModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that PEFT wrote, on a base in a directory."""
    run.stage_dir("sft").rename(tmp_path / "base")
    adapted = get_peft_model(make_policy(), LoraConfig(task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(str(run.stage_dir("sft")))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (run.path / "sft" / name).write_bytes((tmp_path / "base" / name).read_bytes())
    assert main(["export", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert "The adapter of stage sft" in printed
    assert f"PEFT opens it on its base: {tmp_path / 'base'}" in printed
    assert "give both away, or export with --merge" in printed
    assert main(["export", str(run.path), "--merge"]) == 0
    assert "The model with its adapter merged into it of stage sft" in capsys.readouterr().out


def test_mistakes_are_answered_with_a_fix(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run.path), "--stage", "ppo"]) == 1
    assert "--stage sft" in capsys.readouterr().err
    assert main(["export", str(run.path / "sft")]) == 1
    assert "There is no run here" in capsys.readouterr().err
    assert main(["export", str(run.path), "--stage", "evaluate"]) == 1
    assert "trained no model of stage evaluate" in capsys.readouterr().err


@pytest.mark.parametrize(("size", "expected"), [(999, "999 B"), (3_660_000, "3.66 MB"), (2_469_000_000, "2.47 GB")])
def test_sizes(size: int, expected: str) -> None:
    assert export._size(size) == expected
