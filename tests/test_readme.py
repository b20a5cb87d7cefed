"""What the README and the help texts tell people to type works, and their tables say what is there."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_lightning.cli import compare, completion, constitution, doctor, export, main, score, sweep, train
from rlhf_lightning.cli.train_help import help_text
from rlhf_lightning.data.formats import parse_demonstration, parse_preference, parse_prompt, parse_ranking
from rlhf_lightning.diagnosis.doctor import CHECKS
from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.preflight import check_run, check_sweep
from rlhf_lightning.models.adapters import POLICY
from rlhf_lightning.models.hub import ModelSource
from rlhf_lightning.models.loading import load_policy
from rlhf_lightning.models.saving import save_policy
from rlhf_lightning.models.tuning import tune
from rlhf_lightning.settings.peft import Ia3
from rlhf_lightning.settings.stages import STAGES
from rlhf_lightning.worlds.courtesy.base_model import new_model
from rlhf_lightning.worlds.courtesy.tokenizer import build_tokenizer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

FILES = ("pairs.jsonl", "rankings.jsonl", "replies.jsonl", "helpful.jsonl", "harmless-base.jsonl.gz")
"""The files that the commands name, as a user would have them."""
ARTIFACTS = tuple(
    f"{run}/{stage}" for run in ("RUN", "outputs/latest") for stage in ("sft", "comparisons", "reward_model", "ppo")
)
"""The finished artifacts that they name."""


def blocks(language: str) -> list[str]:
    """The contents of the README's fenced blocks of a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [body for named, body in fenced if named == language]


def commands(text: str) -> list[list[str]]:
    """The words of each command of a shell script: comments cut off, continued lines joined."""
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def table(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its two header rows."""
    section = README.split(f"# {heading}\n", 1)[1]
    rows = re.search(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    assert rows is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.group().splitlines()[2:]]


def codes(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def help_examples() -> list[list[str]]:
    """The commands that the help texts show, each cut where its explanation begins."""
    shown = re.findall(r"^  (rlhf train.*?)(?:  .*)?$", help_text(ConfigTree.load()) + main.overview(), re.MULTILINE)
    return [words for line in shown if (words := shlex.split(line)) != ["rlhf", "train"]]


README_COMMANDS = [words for block in blocks("bash") for words in commands(block)]
TYPED = dict.fromkeys(map(tuple, (*README_COMMANDS, *help_examples())))
TRAIN = [list(words[2:]) for words in TYPED if words[:2] == ("rlhf", "train")]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files and artifacts that the commands name, on a machine with GPUs."""
    for name in FILES:
        (tmp_path / name).touch()
    for name in ARTIFACTS:
        (tmp_path / name).mkdir(parents=True)
    (example,) = blocks("yaml")
    (tmp_path / "mine.yaml").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    return tmp_path


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


def test_there_are_commands_to_check() -> None:
    assert len(TRAIN) >= 25
    assert any("-m" in words for words in TRAIN)
    assert README_COMMANDS[:2] == [["bash", "scripts/quickstart.sh"], ["bash", "scripts/test.sh"]]


@pytest.mark.usefixtures("prepared")
@pytest.mark.parametrize("words", TRAIN, ids=" ".join)
def test_every_train_command_passes_the_preflight(tree: ConfigTree, words: list[str]) -> None:
    arguments = train.parser().parse_intermixed_args(words)
    if arguments.multirun:
        assert all(checked.settings is not None for checked in check_sweep(tree, arguments.overrides))
    else:
        assert check_run(tree, arguments.overrides, to_show=bool(arguments.cfg)).settings is not None


def test_inline_commands_are_known_too(tree: ConfigTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "first.yaml").write_text("# @package _global_\nppo:\n  epochs: 7\n")
    monkeypatch.chdir(tmp_path)
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    inline = [shlex.split(" ".join(text.split())) for text in re.findall(r"`(rlhf train[^`]*)`", prose)]
    assert ["rlhf", "train", "--config-dir", "mine", "experiment=first"] in inline
    for words in inline:
        arguments = train.parser().parse_intermixed_args(words[2:])
        if arguments.multirun and arguments.overrides:
            assert words[2:] in TRAIN  # where it is checked
            continue
        own = ConfigTree.load(Path(arguments.config_dir)) if arguments.config_dir else tree
        settings = check_run(own, arguments.overrides).settings
        assert settings is not None
        assert (settings.ppo.epochs == 7) == bool(arguments.config_dir)


@pytest.mark.usefixtures("prepared")
def test_the_torchrun_command_passes_the_preflight(tree: ConfigTree, monkeypatch: pytest.MonkeyPatch) -> None:
    (words,) = [words for words in README_COMMANDS if words[0] == "torchrun"]
    module = words.index("-m")
    assert words[module : module + 3] == ["-m", "rlhf_lightning", "train"]
    options = dict(option.split("=") for option in words[1:module])
    processes = int(options["--nnodes"]) * int(options["--nproc-per-node"])
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings = check_run(tree, words[module + 3 :]).settings
    assert settings is not None
    assert settings.trainer.processes == processes


@pytest.mark.usefixtures("prepared")
def test_every_constitution_command_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    consulting = [words[2:] for words in README_COMMANDS if words[:2] == ["rlhf", "constitution"]]
    parsed = [constitution.parser().parse_args(words) for words in consulting]
    assert [hasattr(arguments, "directory") for arguments in parsed].count(True) == 1
    for words in consulting:
        if words[0] != "matrix":  # which asks for a sweep
            assert main.main(["constitution", *words]) == 0
    assert "name_the_tool" in capsys.readouterr().out


def test_every_score_command_is_understood() -> None:
    scoring = [words[2:] for words in README_COMMANDS if words[:2] == ["rlhf", "score"]]
    assert scoring
    for words in scoring:
        before_redirection = words[: words.index("<")] if "<" in words else words
        assert score.parser().parse_args(before_redirection).model


def test_every_export_command_is_understood() -> None:
    exporting = [words[2:] for words in README_COMMANDS if words[:2] == ["rlhf", "export"]]
    assert len(exporting) >= 2
    for words in exporting:
        assert export.parser().parse_args(words).run


def test_every_sweep_command_is_understood() -> None:
    acting = [words[2:] for words in README_COMMANDS if words[:2] == ["rlhf", "sweep"]]
    assert {sweep.parser().parse_args(words).action for words in acting} == {"resume", "status"}


def test_every_doctor_command_is_understood() -> None:
    consulting = [words[2:] for words in README_COMMANDS if words[:2] == ["rlhf", "doctor"]]
    assert consulting
    for words in consulting:
        assert doctor.parser().parse_args(words).runs


def test_every_compare_command_is_understood() -> None:
    comparing = [words[2:] for words in README_COMMANDS if words[:2] == ["rlhf", "compare"]]
    assert comparing
    for words in comparing:
        assert compare.parser().parse_args(words).directories


def test_what_the_doctor_is_shown_to_say_is_what_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    shown = next(block for block in blocks("") if "[learning_rate_too_high]" in block).splitlines()
    assert main.main(["doctor", "tests/diagnosis/histories/learning_rate"]) == 3
    assert set(shown) <= set(capsys.readouterr().out.splitlines())


def test_the_table_of_findings_names_them_all() -> None:
    written = [name for names, *_ in table("Is this run healthy?") for name in codes(names)]
    assert sorted(written) == sorted(check.__name__ for check in CHECKS)


def test_the_text_to_score_is_in_the_words_of_the_world() -> None:
    tokenizer = build_tokenizer()
    (text,) = [word for words in README_COMMANDS for word in words if word.startswith("<bos>")]
    assert tokenizer.unk_token_id not in tokenizer.encode(text)
    turns = zip(("user", "assistant"), re.split(r"<\w+>", text)[2:4], strict=True)
    chat = [{"role": role, "content": content} for role, content in turns]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == text


def test_every_script_exists_and_is_valid_shell() -> None:
    scripts = sorted(set(re.findall(r"scripts/\w+\.sh", README)))
    assert scripts == ["scripts/quickstart.sh", "scripts/slurm.sh", "scripts/test.sh"]
    for script in (*scripts, "scripts/setup.sh", ".ci/run"):
        checked = subprocess.run(["bash", "-n", str(ROOT / script)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_every_module_and_shell_named_exists() -> None:
    modules = [words[2] for words in README_COMMANDS if words[:2] == ["python", "-m"]]
    assert modules == ["rlhf_lightning.worlds.courtesy.build"]
    assert all(importlib.util.find_spec(module) is not None for module in modules)
    assert set(re.findall(r"rlhf completion (\w+)", README)) <= set(completion.SCRIPTS)


def test_no_other_command_hides_in_the_readme() -> None:
    known = {"bash", "rlhf", "python", "source", "eval", "torchrun", "sbatch", "wandb"}
    assert {words[0] for words in README_COMMANDS} == known


def test_commands_of_wandb_are_its_own() -> None:
    from wandb.cli.cli import cli

    wandb = [words[1:] for words in README_COMMANDS if words[0] == "wandb"]
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


def test_the_table_of_stages_names_them_all_in_order() -> None:
    assert [codes(stage)[0] for stage, *_ in table("Stages")] == list(STAGES)


def test_the_example_records_are_read_as_what_they_are_called() -> None:
    parsers = {
        "data.demonstrations": parse_demonstration,
        "data.preferences": parse_preference,
        "data.rankings": parse_ranking,
        "data.prompts": parse_prompt,
    }
    examples = dict(re.findall(r"^\| `(data\.\w+)` \| `(\{.*\})` \|$", README, flags=re.MULTILINE))
    assert examples.keys() == parsers.keys()
    for key, parse in parsers.items():
        assert parse(json.loads(examples[key]), "README.md") is not None


def test_links_to_files_lead_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if not target.startswith("https://")]
    assert sorted(targets) == ["CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"]
    assert all((ROOT / target).is_file() for target in targets)


def test_the_figures_stand_in_one_block() -> None:
    assert [README.count(f"<!-- figures:{edge} -->") for edge in ("begin", "end")] == [1, 1]
    assert README.index("<!-- figures:begin -->") < README.index("<!-- figures:end -->")


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
    exec(compile(snippet, "README.md", "exec"), opened)
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
    exec(compile(snippet, "README.md", "exec"), {})
    reply = capsys.readouterr().out.split()
    assert reply
    assert set(reply) <= set(tokenizer.get_vocab())
