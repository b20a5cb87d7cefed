"""Where a run came from, without anybody's secrets."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.preflight import check_run
from rlhf_lightning.experiment.provenance.code import git_state
from rlhf_lightning.experiment.provenance.origin import config_hash, gather_provenance
from rlhf_lightning.experiment.provenance.secrets import redact
from rlhf_lightning.settings.run import RunSettings


def settings_for(*overrides: str) -> RunSettings:
    settings = check_run(ConfigTree.load(), overrides).settings
    assert settings is not None
    return settings


def git(directory: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=trunk"]
    subprocess.run(["git", "-C", str(directory), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with one commit, and a package in it."""
    package = tmp_path / "repository" / "package"
    package.mkdir(parents=True)
    (package / "code.py").write_text("x = 1\n")
    git(package.parent, "init")
    git(package.parent, "add", ".")
    git(package.parent, "commit", "-m", "one")
    return package


def test_a_clean_checkout(checkout: Path) -> None:
    state = git_state(checkout)
    assert state is not None
    assert (state["branch"], state["dirty"], state["diff"]) == ("trunk", False, "")
    assert len(state["commit"]) == 40


def test_uncommitted_changes_are_kept_without_secrets(checkout: Path) -> None:
    (checkout / "code.py").write_text("x = sorted([2], key=abs)\nAPI_KEY=abc123\n")
    state = git_state(checkout)
    assert state is not None
    assert state["dirty"] is True
    assert "+x = sorted([2], key=abs)" in state["diff"]
    assert "abc123" not in state["diff"]


def test_an_installed_package_belongs_to_no_checkout(checkout: Path, tmp_path: Path) -> None:
    assert git_state(tmp_path / "site-packages" / "package") is None
    inside = checkout.parent / "venv" / "site-packages" / "package"
    inside.mkdir(parents=True)
    assert git_state(inside) is None  # a virtual environment inside somebody's repository


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("logger.api_key=abc", "logger.api_key=***"),
        ("judge.token=abc", "judge.token=***"),
        ("judge.openai_api_key=s-1", "judge.openai_api_key=***"),
        ("data.name=https://me:pw@host/x?token=abc&y=1", "data.name=https://***@host/x?token=***&y=1"),
        ("api_key: abc", "api_key: ***"),
        ("kl.coef=0.1", "kl.coef=0.1"),
        ("rollout.max_new_tokens=32", "rollout.max_new_tokens=32"),
        ("notes=keyboard", "notes=keyboard"),
    ],
)
def test_secrets_are_redacted_and_nothing_else(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_everything_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-the-environment")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(b'{"chosen": "a"}\n')
    settings = settings_for("data=hh_rlhf", f"data.path={pairs}", "model=scratch")
    record = gather_provenance(settings, ["data=hh_rlhf", "x.token=abc"])
    assert record["data"] == {str(pairs): hashlib.sha256(b'{"chosen": "a"}\n').hexdigest()}
    assert record["overrides"] == ["data=hh_rlhf", "x.token=***"]
    assert record["packages"]["hydra-core"].startswith("1.3")
    assert record["machine"]["cpu_count"] >= 1
    assert record["machine"]["memory_bytes"] > 2**28
    assert "a-secret-of-the-environment" not in json.dumps(record)


def test_the_config_hash_is_the_configs_and_not_the_directorys() -> None:
    first = config_hash(settings_for("paths.run_dir=a"))
    assert first == config_hash(settings_for("paths.run_dir=b"))
    assert first != config_hash(settings_for("seed=2"))
