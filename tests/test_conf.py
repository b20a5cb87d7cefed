"""`conf/` is the whole truth about defaults: every file composes, every key is explained, the code adds nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_lightning.errors import ConfigError
from rlhf_lightning.runs.compose import ConfigTree, conf_directory
from rlhf_lightning.runs.preflight import check_run
from rlhf_lightning.sections import Section
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.stages.targets import instantiate, target_nodes

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
FILES = sorted(path for path in CONF.rglob("*.yaml") if "local" not in path.parts)

EXPLAINED_BY_THE_FILE = {"kind", "stage", "name", "stages", "_target_"}
"""Keys that say what the file's first line says."""

KEY = re.compile(r"^\s*(\w+):(.*)$")
COMMENT = re.compile(r"(?:^|\s)# \S")


@pytest.fixture(scope="module")
def tree() -> ConfigTree:
    return ConfigTree.load()


def name_of(path: Path) -> str:
    return str(path.relative_to(CONF))


def choice_of(path: Path) -> str:
    """The override that chooses a file: `kl=none`, and `stage@sft=sft` for a stage."""
    group, option = path.parent.name, path.stem
    return f"stage@{option}={option}" if group == "stage" else f"{group}={option}"


def is_overlay(path: Path) -> bool:
    """Whether a file gives new values to keys that other files introduce, and explain."""
    text = path.read_text(encoding="utf-8")
    return "# @package" in text or text.startswith("defaults:") or "\ndefaults:" in text


def header_of(lines: list[str]) -> list[str]:
    """The comment lines that a file begins with."""
    length = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:length]


def unexplained_keys(text: str) -> Iterator[str]:
    """Keys without a comment on their line, on the line above, or in a header that mentions them."""
    lines = text.splitlines()
    header = " ".join(header_of(lines))
    for number, line in enumerate(lines):
        match = KEY.match(line)
        if match is None or match[1] in EXPLAINED_BY_THE_FILE:
            continue
        above = lines[number - 1] if number > len(header_of(lines)) else ""
        explained = COMMENT.search(match[2]) or above.lstrip().startswith("# ")
        if not explained and not re.search(rf"\b{match[1]}\b", header):
            yield match[1]


def sections(of: type[Section] = Section) -> Iterator[type[Section]]:
    for section in of.__subclasses__():
        yield section
        yield from sections(section)


def test_the_program_reads_this_folder() -> None:
    assert conf_directory() == CONF
    assert len(FILES) > 35


def batches() -> list[list[Path]]:
    """All options, as few configs as they fit into: one of each group, an overlay alone."""
    groups: dict[Path, list[Path]] = {}
    for path in FILES:
        if path.parent not in (CONF, CONF / "hydra"):
            groups.setdefault(path if is_overlay(path) or path.parent.name == "stage" else path.parent, []).append(path)
    single = [options for place, options in groups.items() if place.suffix and place.parent.name != "stage"]
    stages = [path for place, options in groups.items() if place.parent.name == "stage" for path in options]
    others = [options for place, options in groups.items() if not place.suffix]
    return [*single, stages, *([path for path in row if path] for row in zip_longest(*others))]


@pytest.mark.parametrize("paths", batches(), ids=lambda paths: name_of(paths[0]))
def test_every_option_composes_and_fits_the_schema(tree: ConfigTree, paths: list[Path]) -> None:
    for path in paths:
        assert path.stem in tree.options(path.parent.name)
    # Values that only a user can give may be missing, and groups may contradict each other: every section is checked.
    check_run(tree, [choice_of(path) for path in paths], to_show=True)


def test_batches_hold_every_option() -> None:
    tried = [path for paths in batches() for path in paths]
    assert sorted(tried) == [path for path in FILES if path.parent not in (CONF, CONF / "hydra")]


@pytest.mark.parametrize("debug", ["", "debug=tiny"])
@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_passes_the_preflight(tree: ConfigTree, tmp_path: Path, experiment: str, debug: str) -> None:
    records = tmp_path / "records.jsonl"
    records.touch()
    overrides = [f"experiment={experiment}", f"data.path={records}", *filter(None, [debug])]
    settings = check_run(tree, overrides).settings
    assert settings is not None
    assert settings.data.kind == "hh_rlhf"


def test_a_missing_value_is_asked_for_once_the_run_is_real(tree: ConfigTree) -> None:
    for path in FILES:
        missing = re.findall(r"^(\w+): \?\?\?", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        if missing:
            with pytest.raises(ConfigError) as caught:
                check_run(tree, [choice_of(path)])
            named = {problem.key for problem in caught.value.problems}
            assert {f"{path.parent.name}.{key}" for key in missing} <= named


@pytest.mark.parametrize("path", [path for path in FILES if not is_overlay(path)], ids=name_of)
def test_every_key_has_a_comment_that_says_what_it_does(path: Path) -> None:
    assert list(unexplained_keys(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("path", [path for path in FILES if is_overlay(path)], ids=name_of)
def test_every_file_of_new_values_says_what_they_are_for(path: Path) -> None:
    header = [line for line in header_of(path.read_text(encoding="utf-8").splitlines()) if "@package" not in line]
    assert header


def test_a_key_without_a_comment_would_be_found() -> None:
    text = (
        "# What alpha is.\nalpha: 1\nbeta: 2 # units\n# How many.\ngamma: 3\ndelta: 4\npart: # of things\n  inner: 5\n"
    )
    assert list(unexplained_keys(text)) == ["delta", "inner"]


def test_no_default_stands_in_the_schema() -> None:
    found = list(sections())
    assert RunSettings in found
    optional = [
        f"{section.__name__}.{name}"
        for section in found
        for name, field in section.model_fields.items()
        if not field.is_required()
    ]
    assert optional == []


def test_no_key_is_written_twice_in_a_file() -> None:
    for path in FILES:
        for mapping in mappings(yaml.compose(path.read_text(encoding="utf-8"))):
            keys = [key.value for key, _ in mapping.value]
            assert len(keys) == len(set(keys)), f"{name_of(path)}: {keys}"


def mappings(node: yaml.Node | None) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from mappings(value)


def shipped_targets() -> dict[str, dict[str, Any]]:
    """Every mapping with a `_target_` in conf/, by file and key."""
    return {
        f"{name_of(path)}:{key}": dict(node)
        for path in FILES
        for key, node in target_nodes(yaml.safe_load(path.read_text(encoding="utf-8")), "config")
    }


def test_every_shipped_target_is_real_and_takes_its_arguments() -> None:
    targets = shipped_targets()
    assert "optimizer/adamw.yaml:config" in targets
    for key, node in targets.items():
        # What refers to Hydra's own node is known in a run only; any text stands for it.
        given = {name: value for name, value in node.items() if "${" not in str(value)}
        unknown = dict.fromkeys(node.keys() - given.keys(), "unknown")
        factory = instantiate({**given, **unknown, "_partial_": True}, allow_targets=(), key=key)
        inspect.signature(factory.func).bind_partial(**factory.keywords)
        if key.startswith("optimizer/"):
            optimizer = factory([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
            assert isinstance(optimizer, torch.optim.Optimizer)
            del given["_target_"]
            as_lists = {name: list(v) if isinstance(v, tuple) else v for name, v in optimizer.defaults.items()}
            assert as_lists.items() >= {"lr": 0.5, **given}.items()
