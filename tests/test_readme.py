"""The commands of the README files and help texts work, their tables are complete, their links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from documents import (
    README_FILES,
    ROOT,
    anchors,
    blocks,
    codes,
    inline_commands,
    links,
    table,
    typed_commands,
)

from rlhf_lightning.cli import cache, compare, completion, constitution, doctor, export, main, score, sweep, train
from rlhf_lightning.cli.train import help_text
from rlhf_lightning.data.formats import parse_demonstration, parse_preference, parse_prompt, parse_ranking
from rlhf_lightning.evaluation.doctor import CHECKS
from rlhf_lightning.models.adapters import POLICY
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy, save_policy
from rlhf_lightning.models.settings import Ia3
from rlhf_lightning.models.tuning import tune
from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.preflight import check_run, check_sweep
from rlhf_lightning.stages.declaration import STAGES
from rlhf_lightning.worlds.courtesy import asset_path
from rlhf_lightning.worlds.courtesy.base_model import build_tokenizer, new_model

FILES = ("pairs.jsonl", "rankings.jsonl", "responses.jsonl", "helpful.jsonl", "harmless-base.jsonl.gz")
"""The files that the commands name, as a user would have them."""
ARTIFACTS = tuple(
    f"{run}/{stage}" for run in ("RUN", "outputs/latest") for stage in ("sft", "comparisons", "reward_model", "ppo")
)
"""The finished artifacts that they name."""


PARSERS: dict[str, Callable[[], ArgumentParser]] = {
    command.__name__.rpartition(".")[2]: command.parser for command in (cache, compare, doctor, export, score, sweep)
}
"""Parsers of the subcommands that only look at what is there."""


def help_examples() -> list[tuple[str, ...]]:
    """The commands that the help texts show, each cut where its explanation begins."""
    shown = re.findall(r"^  (rlhf train.*?)(?:  .*)?$", help_text(ConfigTree.load()) + main.overview(), re.MULTILINE)
    return [tuple(shlex.split(line)) for line in shown]


COMMANDS = typed_commands()
TRAIN = {
    words[2:]: file
    for words, file in (inline_commands("rlhf train") | dict.fromkeys(help_examples(), "--help") | COMMANDS).items()
    if words[:2] == ("rlhf", "train")
}
"""Arguments of `rlhf train`, with the file that has them."""


def arguments_of(*beginning: str) -> list[list[str]]:
    """Arguments of all commands that begin with some words."""
    return [list(words[len(beginning) :]) for words in COMMANDS if words[: len(beginning)] == beginning]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the files and artifacts that the commands name, on a machine with GPUs."""
    for name in FILES:
        (tmp_path / name).touch()
    for name in (*ARTIFACTS, "mine/experiment"):
        (tmp_path / name).mkdir(parents=True)
    examples = blocks("yaml")
    (example,) = (block for block in examples if "plugins" not in block)
    (tmp_path / "mine" / "experiment" / "norms.yaml").write_text(*(block for block in examples if "plugins" in block))
    (tmp_path / "my_stages.py").write_text(*(block for block in blocks("python") if "@register" in block))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    (tmp_path / "mine" / "experiment" / "first.yaml").write_text("# @package _global_\nppo:\n  epochs: 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    yield tmp_path
    sys.modules.pop("my_stages", None)
    STAGES.pop("norms", None)


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    assert README_FILES["README.md"].count("\n") <= 250
    assert list(COMMANDS)[:2] == [("bash", "scripts/quickstart.sh"), ("bash", "scripts/test.sh")]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("words", [pytest.param(words, id=f"{TRAIN[words]}: {' '.join(words)}") for words in TRAIN])
def test_every_train_command_passes_the_preflight(words: tuple[str, ...]) -> None:
    arguments = train.parser().parse_intermixed_args(words)
    tree = ConfigTree.load(Path(arguments.config_dir) if arguments.config_dir else None)
    if arguments.multirun and arguments.overrides:
        assert all(checked.settings is not None for checked in check_sweep(tree, arguments.overrides))
        return
    settings = check_run(tree, arguments.overrides, to_show=bool(arguments.cfg)).settings
    assert settings is not None
    assert (settings.ppo.epochs == 7) == ("experiment=first" in arguments.overrides)


def test_commands_of_the_help_and_of_prose_are_among_them() -> None:
    assert ("resume=outputs/latest",) in TRAIN
    assert ("--config-dir", "mine", "experiment=first") in TRAIN
    assert sum("-m" in words for words in TRAIN) >= 10
    assert {"--help", "README.md", "conf/README.md", "rlhf_lightning/constitutions/README.md"} <= set(TRAIN.values())


@pytest.mark.usefixtures("prepared")
def test_the_torchrun_command_passes_the_preflight(tree: ConfigTree, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = arguments_of("torchrun")
    module = words.index("-m")
    assert words[module : module + 3] == ["-m", "rlhf_lightning", "train"]
    options = dict(option.split("=") for option in words[:module])
    processes = int(options["--nnodes"]) * int(options["--nproc-per-node"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings = check_run(tree, words[module + 3 :]).settings
    assert settings is not None
    assert settings.trainer.processes == processes


@pytest.mark.usefixtures("prepared")
def test_every_constitution_command_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    consulting = arguments_of("rlhf", "constitution")
    parsed = [constitution.parser().parse_args(words) for words in consulting]
    assert [hasattr(arguments, "directory") for arguments in parsed].count(True) == 1
    for words in consulting:
        if words[0] != "matrix":  # which asks for a sweep
            assert main.main(["constitution", *words]) == 0
    assert "name_the_tool" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(words, id=f"{file}: {' '.join(words[1:])}")
        for words, file in COMMANDS.items()
        if words[0] == "rlhf" and words[1] in PARSERS
    ],
)
def test_every_other_command_is_understood(command: tuple[str, ...]) -> None:
    words = command[2 : command.index("<")] if "<" in command else command[2:]
    assert PARSERS[command[1]]().parse_args(words)


def test_no_subcommand_is_left_out() -> None:
    shown = {name for name, subcommand in main.SUBCOMMANDS.items() if not subcommand.hidden}
    assert {"train", "constitution", "completion", "rerun", *PARSERS} == shown
    assert {words[1] for words in COMMANDS if words[0] == "rlhf"} == {"train", "constitution", *PARSERS}
    assert {words[0] for words in arguments_of("rlhf", "sweep")} == {"resume", "status"}
    assert {words[0] for words in arguments_of("rlhf", "cache")} == {"list", "show", "prune"}


def test_what_the_doctor_is_shown_to_say_is_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    shown = next(block for block in blocks("") if "[learning_rate_too_high]" in block).splitlines()
    assert main.main(["doctor", "tests/evaluation/histories/learning_rate"]) == 3
    assert set(shown) <= set(capsys.readouterr().out.splitlines())


def test_the_table_of_findings_names_them_all() -> None:
    written = [name for names, *_ in table("Findings") for name in codes(names)]
    assert sorted(written) == sorted(check.__name__ for check in CHECKS)


def test_the_text_to_score_is_in_the_words_of_the_world() -> None:
    tokenizer = build_tokenizer()
    (text,) = [word for words in COMMANDS for word in words if word.startswith("<bos>")]
    assert tokenizer.unk_token_id not in tokenizer.encode(text)
    turns = zip(("user", "assistant"), re.split(r"<\w+>", text)[2:4], strict=True)
    chat = [{"role": role, "content": content} for role, content in turns]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text


def test_every_script_is_listed_and_those_of_the_shell_are_valid() -> None:
    scripts = {path.name for path in (ROOT / "scripts").iterdir() if path.suffix in (".py", ".sh")}
    assert {name for names, _ in table("Scripts, and what they measured") for name in codes(names)} == scripts
    named = {name for text in README_FILES.values() for name in re.findall(r"scripts/(\w+\.(?:sh|py))", text)}
    assert {"quickstart.sh", "test.sh", "slurm.sh"} <= named <= scripts
    for script in (*(f"scripts/{name}" for name in sorted(scripts) if name.endswith(".sh")), ".ci/run"):
        checked = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_every_script_knows_the_options_that_it_is_given() -> None:
    running = [words for words in arguments_of("python") if words[0] != "-m"]
    assert {words[0] for words in running} <= {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}
    for script, *words in running:
        text = (ROOT / script).read_text(encoding="utf-8")
        assert all(f'"{word}"' in text for word in words if word.startswith("--")), (script, words)


def test_every_module_and_shell_named_exists() -> None:
    modules = [words[0] for words in arguments_of("python", "-m")]
    assert modules == ["rlhf_lightning.worlds.courtesy.build"]
    assert all(importlib.util.find_spec(module) is not None for module in modules)
    text = README_FILES["conf/README.md"]
    assert set(re.findall(r"rlhf completion (\w+)", text)) == {"bash", "fish"} <= set(completion.SCRIPTS)


def test_no_other_command_hides_in_the_readme_files() -> None:
    known = {"bash", "rlhf", "python", "source", "eval", "torchrun", "sbatch", "wandb"}
    assert {words[0] for words in COMMANDS} == known


def test_commands_of_wandb_are_its_own() -> None:
    from wandb.cli.cli import cli

    wandb = arguments_of("wandb")
    assert {words[0] for words in wandb} <= set(cli.commands)
    assert all((ROOT / word).exists() for words in wandb for word in words if word.startswith("conf/"))


def test_the_table_of_groups_is_what_stands_in_conf(tree: ConfigTree) -> None:
    conf = ROOT / "conf"
    folders = [folder for folder in conf.iterdir() if folder.is_dir() and folder.name != "local"]
    there = {folder.name: sorted(path.stem for path in folder.glob("*.yaml")) for folder in folders}
    rows = table("Config groups")
    written = {codes(group)[0]: codes(options) for group, options, _ in rows}
    assert {group: sorted(options) for group, options in written.items()} == there
    bold = {codes(group)[0]: re.findall(r"\*\*`([^`]+)`\*\*", options) for group, options, _ in rows}
    defaults = {group: [chosen] for group, chosen in tree.choices().items() if chosen and "/" not in group}
    assert {group: chosen for group, chosen in bold.items() if chosen} == {
        group: chosen for group, chosen in defaults.items() if group in written
    }


def test_the_table_of_stages_names_their_sections_in_order() -> None:
    config = yaml.safe_load((ROOT / "conf" / "train.yaml").read_text(encoding="utf-8"))
    names = [choice for default in config["defaults"] if isinstance(default, dict) for choice in default]
    sections = [name.removeprefix("stage@") for name in names if name.startswith("stage@")]
    assert [codes(stage)[0] for stage, *_ in table("Stages")] == sections
    assert set(STAGES) <= set(sections)


def test_the_example_records_are_read_as_what_they_are_called() -> None:
    parsers = {
        "data.demonstrations": parse_demonstration,
        "data.preferences": parse_preference,
        "data.rankings": parse_ranking,
        "data.prompts": parse_prompt,
    }
    examples = {codes(key)[0]: codes(example)[0] for key, example in table("Your own data")}
    assert examples.keys() == parsers.keys()
    for key, parse in parsers.items():
        assert parse(json.loads(examples[key]), "README") is not None


def test_the_table_of_rooms_has_them_all_in_the_order_of_the_imports() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    rooms = [room for layer in layers for room in layer.split(" : ")]
    assert [f"rlhf_lightning.{codes(room)[0]}" for room, *_ in table("Rooms")] == rooms


LINKING = README_FILES | {name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "CHANGELOG.md")}


@pytest.mark.parametrize("file", LINKING)
def test_links_lead_to_files_and_headings(file: str) -> None:
    assert len(set(anchors(LINKING[file]))) == len(anchors(LINKING[file])) or file == "CHANGELOG.md"
    for target in links(LINKING[file]):
        path, _, anchor = target.partition("#")
        linked = ROOT / file if not path else (ROOT / file).parent / path
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_the_readme_leads_to_every_other() -> None:
    targets = {target.partition("#")[0] for target in links(README_FILES["README.md"])}
    assert set(README_FILES) - {"README.md"} <= targets


def test_figures_stand_in_blocks() -> None:
    marks = [mark for text in README_FILES.values() for mark in re.findall(r"^<!-- (\S+):(begin|end) -->$", text, re.M)]
    names = ("figures", "constitution-figures", "default-run-figures")
    assert marks == [(name, edge) for name in names for edge in ("begin", "end")]


def test_the_python_snippet_opens_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = (block for block in blocks("python") if "peft" in block)
    tokenizer = build_tokenizer()
    new_model(tokenizer).save_pretrained(tmp_path / "base")
    policy = load_policy(ModelSource(str(tmp_path / "base")))
    tune(policy, Ia3(kind="ia3", learning_rate_factor=1.0), POLICY, tokenizer, seed=0)
    directory = tmp_path / "outputs" / "latest" / "ppo"
    directory.mkdir(parents=True)
    save_policy(policy, tokenizer, directory)
    monkeypatch.chdir(tmp_path)
    opened: dict[str, Any] = {}
    exec(compile(snippet, "README", "exec"), opened)
    ids = torch.tensor([[3, 4, 5]])
    assert torch.allclose(opened["policy"](ids).logits, policy(ids).logits, atol=1e-5)


def test_the_python_snippet_talks_to_a_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (snippet,) = (block for block in blocks("python") if "AutoTokenizer" in block)
    assert "rlhf_lightning" not in snippet
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    save_policy(new_model(tokenizer), tokenizer, tmp_path / "outputs" / "latest" / "ppo")
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README", "exec"), {})
    response = capsys.readouterr().out.split()
    assert response
    assert set(response) <= set(tokenizer.get_vocab())


def test_the_python_snippet_trains_without_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = (block for block in blocks("python") if "pl.Trainer" in block)
    monkeypatch.chdir(tmp_path)
    left: dict[str, Any] = {}
    exec(compile(snippet, "README", "exec"), left)
    assert left["trainer"].current_epoch == left["ppo"].iterations == 2
    assert left["steps"] == 2
    trained = load_policy(ModelSource(str(tmp_path / "my_policy"))).state_dict()
    fine_tuned = left["reference"].model.state_dict()
    base = load_policy(ModelSource(str(asset_path()))).state_dict()
    assert any(not torch.equal(trained[name], fine_tuned[name]) for name in base)
    assert any(not torch.equal(fine_tuned[name], base[name]) for name in base)
    figures = left["trainer"].callback_metrics
    assert float(figures["objective/raw_score"]) == pytest.approx(-float(figures["rollout/length"]) / 10)
