"""The wheel holds what the program needs and nothing else, and works from an empty directory."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT, codes, table
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rlhf_lightning import __version__

ASSETS = "rlhf_lightning/worlds/courtesy/assets"
LARGEST_MODEL = 2_000_000
"""Bytes that the embedded base model may take."""

UNUSED = ("peft", "wandb", "datasets", "rlhf_lightning.evaluation.plots", "tensorboard", "openai", "bitsandbytes")
"""Without an adapter, W&B, a dataset of the hub, pictures, ...: each process would pay for it again.

Lightning imports torchmetrics, torch._dynamo, DTensor and FSDP by itself; torchmetrics, where they are installed,
matplotlib and scipy. So nothing of ours can leave those out.
"""

MAIN_JOB = """
import json, sys
import rlhf_lightning.runs.pipeline
imported = sorted(sys.modules)
from rlhf_lightning.cli.main import main
code = main(["train", *sys.argv[2:]])
json.dump({"pipeline": imported, "run": sorted(sys.modules)}, open(sys.argv[1], "w"))
sys.exit(code)
"""

TALK = """
import sys

sys.modules["rlhf_lightning"] = None  # whoever imports it, fails
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

run = sys.argv[1]
policy = AutoModelForCausalLM.from_pretrained(f"{run}/ppo")
tokenizer = AutoTokenizer.from_pretrained(f"{run}/ppo")
chat = [{"role": "user", "content": "i want to find the drum"}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
response = policy.generate(**prompt, do_sample=False, max_new_tokens=32)[0, prompt["input_ids"].shape[1] :]
assert response[-1] == tokenizer.eos_token_id or len(response) == 32
print(tokenizer.decode(response, skip_special_tokens=True))
judge = AutoModelForSequenceClassification.from_pretrained(f"{run}/reward_model")
assert judge(**prompt).logits.shape == (1, 1)
"""


def project() -> dict[str, Any]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert isinstance(content, dict)
    return content


def pins() -> dict[str, str]:
    """The exact versions of the constraints file, by canonical name."""
    lines = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    found = {str(canonicalize_name(name)): version for name, version in pairs}
    assert len(found) == len(pairs), "a package is pinned twice"
    return found


def conf_files() -> Iterator[Path]:
    """The config files that are shipped; `conf/local` is a user's own."""
    return (path for path in (ROOT / "conf").rglob("*.yaml") if "local" not in path.parts)


def test_the_version_is_the_same_everywhere() -> None:
    released = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released is not None
    assert project()["version"] == __version__ == released[1]


def test_every_dependency_of_an_installation_is_pinned_within_its_range() -> None:
    pinned = pins()
    extras = project()["optional-dependencies"]
    (own,) = (requirement for text in extras["dev"] if (requirement := Requirement(text)).name == project()["name"])
    texts = [text for extra in ("dev", *sorted(own.extras)) for text in extras[extra]]
    for text in (*project()["dependencies"], *texts):
        requirement = Requirement(text)
        if requirement.name == own.name:
            continue
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{text} is pinned to {version}"


def test_what_is_required_is_what_the_package_imports() -> None:
    """Extras are imported by the options that need them; what other packages always bring counts as theirs."""
    parts = {"annotated-types": "pydantic", "pydantic-core": "pydantic", "optuna": "hydra-optuna-sweeper"}
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "rlhf_lightning").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    modules = {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) - {"rlhf_lightning"}
    owners = packages_distributions()
    used = {parts.get(name, name) for module in modules for name in map(canonicalize_name, owners[module])}
    extras = project()["optional-dependencies"]
    optional = {canonicalize_name(Requirement(text).name) for name in extras if name != "dev" for text in extras[name]}
    required = {canonicalize_name(Requirement(text).name) for text in project()["dependencies"]}
    assert used - optional == required


def test_compromised_releases_are_excluded() -> None:
    (lightning,) = (Requirement(text) for text in project()["dependencies"] if text.startswith("pytorch-lightning"))
    assert not any(lightning.specifier.contains(version) for version in ("2.6.2", "2.6.3"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a fresh environment with the wheel in it.

    The packages that it depends on are those of this environment, made visible through a .pth file. Such a file's
    folders come after the environment's own, and their .pth files are not read, so no editable install gets in.
    """
    home = tmp_path_factory.mktemp("environment")
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(home)})
    shared = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (Path(own) / "shared.pth").write_text("".join(f"{folder}\n" for folder in shared))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return home / "bin"


def call(directory: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs a command in a directory, with nothing on the path that leads back to this checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [*map(str, command)], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def modules_of(installed: Path) -> Path:
    """The file that says what the main job has imported."""
    return installed / "modules.json"


@pytest.fixture(scope="module")
def run(installed: Path, modules_of: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the main job, at the smallest sizes, started in an empty directory."""
    empty = tmp_path_factory.mktemp("empty")
    smallest = ("debug=tiny", "data.demonstrations=64", "comparisons.prompts=12", "comparisons.held_out_fraction=0.25")
    options = (*smallest, "callbacks.plots=true", "logger=none")
    done = call(empty, installed / "python", "-c", MAIN_JOB, modules_of, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in empty.iterdir()] == ["outputs"]
    return (empty / "outputs" / "latest").resolve()


def test_the_wheel_holds_the_config_and_the_base_model(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        for path in conf_files():
            packed = f"rlhf_lightning/{path.relative_to(ROOT).as_posix()}"
            assert archive.read(packed) == path.read_bytes()
    assert {"rlhf_lightning/conf/train.yaml", "rlhf_lightning/py.typed"} <= sizes.keys()
    assert {f"{ASSETS}/{name}" for name in ("config.json", "tokenizer.json", "record.json")} <= sizes.keys()
    assert "rlhf_lightning/runs/model_card.md.jinja" in sizes
    assert 0 < sizes[f"{ASSETS}/model.safetensors"] <= LARGEST_MODEL


def test_the_wheel_holds_the_parts_of_the_report(wheel: Path) -> None:
    folder = "rlhf_lightning/comparison/report/page"
    parts = {path.name: path.read_bytes() for path in (ROOT / folder).iterdir()}
    assert {"template.html", "style.css", "main.js"} <= parts.keys()
    with zipfile.ZipFile(wheel) as archive:
        for name, content in parts.items():
            assert archive.read(f"{folder}/{name}") == content


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    information = f"rlhf_lightning-{__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"rlhf_lightning", information}
    assert len([name for name in names if name.startswith("rlhf_lightning/conf/")]) == len(list(conf_files()))
    assert not [name for name in names if name.endswith((".pyc", ".ckpt", ".md"))]
    assert f"{information}/licenses/LICENSE" in names


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        information = f"rlhf_lightning-{__version__}.dist-info"
        metadata = Parser().parsestr(archive.read(f"{information}/METADATA").decode())
        entry_points = archive.read(f"{information}/entry_points.txt").decode()
    assert (metadata["Name"], metadata["Version"]) == ("rlhf-lightning", __version__)
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "rlhf = rlhf_lightning.cli.main:main" in entry_points


def test_the_installed_package_is_the_wheels(installed: Path, tmp_path: Path) -> None:
    asked = call(tmp_path, installed / "python", "-c", "import rlhf_lightning; print(rlhf_lightning.__file__)")
    assert Path(asked.stdout.strip()).is_relative_to(installed.parent), asked.stdout + asked.stderr
    assert call(tmp_path, installed / "rlhf", "--version").stdout == f"rlhf_lightning {__version__}\n"


def test_the_main_job_runs_from_an_empty_directory(run: Path) -> None:
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["stages"]) == ["sft", "comparisons", "reward_model", "ppo", "evaluate"]
    assert metrics["evaluate"].keys() == {"sft", "ppo"}


@pytest.mark.usefixtures("run")
def test_what_a_run_does_not_use_it_does_not_import(modules_of: Path) -> None:
    modules = {when: set(names) for when, names in json.loads(modules_of.read_text()).items()}
    assert "torch" in modules["pipeline"]
    assert modules["pipeline"] & set(UNUSED) == set()
    assert modules["run"] & set(UNUSED) == {"rlhf_lightning.evaluation.plots"}  # which it was told to draw


def test_the_run_leaves_what_the_readme_lists(run: Path) -> None:
    listed = [name for cell, _ in table("What a run leaves") for name in codes(cell)]
    always = [name for name in listed if not name.startswith(("checkpoints/", "changes.patch", "callbacks."))]
    assert len(always) >= 12
    for name in always:
        assert (run / name).is_dir() if name.endswith("/") else (run / name).is_file(), name


def test_what_the_run_leaves_works_with_nothing_but_transformers(run: Path, installed: Path, tmp_path: Path) -> None:
    talked = call(tmp_path, installed / "python", "-c", TALK, run)
    assert talked.returncode == 0, talked.stderr
    vocabulary = json.loads((run / "ppo" / "tokenizer.json").read_text())["model"]["vocab"]
    assert set(talked.stdout.split()) <= vocabulary.keys()
