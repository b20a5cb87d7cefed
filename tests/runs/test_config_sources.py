"""Where a value came from, and where a path in a file points: asked of a config of a few lines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.constitution import ConstitutionFiles
from rlhf_lightning.runs.overrides import JobOverrides, shared_config
from rlhf_lightning.runs.validation import apply_value

FILES = {
    "train": "defaults:\n  - kl: fixed\n  - launcher: basic\n  - _self_\n\nseed: 1\n",
    "kl/fixed": "# About it.\nestimator: k1\ncoef: 0.1\n",
    "kl/none": "estimator: k3\n",
    "launcher/basic": "jobs: 1\n",
    "launcher/joblib": "jobs: 2\n",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_options: Callable[[Path, Mapping[str, str]], None]) -> Path:
    folder = tmp_path_factory.mktemp("conf")
    write_options(folder, FILES)
    return folder


@pytest.fixture(scope="module")
def tree(folder: Path) -> ConfigTree:
    return ConfigTree.load(folder)


def override(text: str) -> Override:
    return OverridesParser.create().parse_override(text)


def test_the_origin_of_a_key_is_the_line_of_the_file_that_set_it(tree: ConfigTree, folder: Path) -> None:
    assert tree.origin("kl.coef", ()) == f"{folder}/kl/fixed.yaml:3"
    assert tree.origin("seed", ()) == f"{folder}/train.yaml:6"
    assert tree.origin("kl.estimator", ("kl=none",)) == f"{folder}/kl/none.yaml:1"


def test_the_origin_of_a_section_is_the_first_line_below_the_comments(tree: ConfigTree, folder: Path) -> None:
    assert tree.origin("kl", ()) == f"{folder}/kl/fixed.yaml:2"


def test_a_key_that_no_file_sets_has_no_origin(tree: ConfigTree) -> None:
    assert tree.origin("kl.coef", ("kl=none",)) is None
    assert tree.origin("kl.target", ()) is None


def test_a_sweep_s_launcher_is_the_chosen_one_whatever_its_jobs_differ_in(tree: ConfigTree) -> None:
    config = shared_config(tree, tree.parse(["launcher=joblib", "kl=fixed,none"]))
    assert config.launcher.jobs == 2


def test_a_section_was_set_by_an_override_above_or_below_it() -> None:
    choice, below = override("kl=fixed"), override("kl.coef=0.2")
    both = JobOverrides((choice,), (below,), ())
    assert both.setting("kl") is below  # a value counts after a choice
    assert both.setting("kl.coef") is below
    assert both.setting("kl.estimator") is choice
    assert both.setting("kl_target") is None  # a longer name, not a key below


def test_an_override_may_add_a_key_that_no_file_holds() -> None:
    config = OmegaConf.create({"optimizer": {"betas": [0.9, 0.95]}})
    OmegaConf.set_struct(config, True)  # as Hydra composes it
    apply_value(config, override("++optimizer.amsgrad=true"))
    assert config == {"optimizer": {"betas": [0.9, 0.95], "amsgrad": True}}


def test_an_override_with_a_mapping_keeps_the_section_s_other_keys() -> None:
    config = OmegaConf.create({"logger": {"project": "ours", "mode": "auto"}})
    apply_value(config, override("logger={project: mine}"))
    assert config == {"logger": {"project": "mine", "mode": "auto"}}


def test_the_paths_in_a_mixture_start_where_its_file_lies(tmp_path: Path) -> None:
    (tmp_path / "mixed.yaml").write_text("mixture: {own.yaml: 0.25, hhh: 0.75}\n")
    raw = ConstitutionFiles([]).load(str(tmp_path / "mixed.yaml")).raw
    assert raw == {"mixture": {f"{tmp_path}/own.yaml": 0.25, "hhh": 0.75}}
