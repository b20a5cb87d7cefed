"""Where a run came from, without anybody's secrets."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from rlhf_lightning.runs.compose import ConfigTree
from rlhf_lightning.runs.preflight import check_run
from rlhf_lightning.runs.provenance import (
    changes_of_environment,
    changes_of_origin,
    completed,
    config_hash,
    gather_provenance,
    git_state,
)
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.tracking.redaction import redact_text


def settings_for(*overrides: str) -> RunSettings:
    settings = check_run(ConfigTree.load(), overrides).settings
    assert settings is not None
    return settings


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


def test_a_diff_that_lost_something_says_so(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "code.py").write_text("x = 2\n")
    state = git_state(checkout)
    assert state is not None
    assert state["diff_exact"] is True
    monkeypatch.setattr("rlhf_lightning.runs.provenance.LONGEST_DIFF", 20)
    state = git_state(checkout)
    assert state is not None
    assert (len(state["diff"]), state["diff_exact"]) == (20, False)


def test_files_that_git_does_not_track_belong_to_the_changes(checkout: Path) -> None:
    (checkout / "new.py").write_text("y = 2\n")
    (checkout.parent / "letter.txt").write_text("not of the package\n")
    (checkout.parent / ".gitignore").write_text("*.bin\n")
    (checkout / "weights.bin").write_bytes(b"0")
    state = git_state(checkout)
    assert state is not None
    assert state["untracked"] == ["package/new.py"]
    assert "+y = 2" in state["diff"]
    assert "letter" not in state["diff"]


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
        ("pad_token=pad, eos_token=eos", "pad_token=pad, eos_token=eos"),
        ("hub_token=abc", "hub_token=***"),
    ],
)
def test_secrets_are_redacted_and_nothing_else(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_everything_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-secret-of-the-environment")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_bytes(b'{"chosen": "a"}\n')
    settings = settings_for("data=hh_rlhf", f"data.path={pairs}", "model=scratch")
    record = gather_provenance(settings, ["data=hh_rlhf", "x.token=abc"])
    digest = hashlib.sha256(b'{"chosen": "a"}\n').hexdigest()
    assert record["stages"]["comparisons"]["data"] == {"path": f"content {digest}"}
    assert record["overrides"] == ["data=hh_rlhf", "x.token=***"]
    assert record["installed"]["hydra-core"].startswith("1.3")
    assert record["machine"]["cpu_count"] >= 1
    assert record["machine"]["memory_bytes"] > 2**28
    assert "a-secret-of-the-environment" not in json.dumps(record)


def test_the_config_hash_is_the_configs_and_not_the_directorys() -> None:
    first = config_hash(settings_for("paths.run_dir=a"))
    assert first == config_hash(settings_for("paths.run_dir=b"))
    assert first != config_hash(settings_for("seed=2"))


def test_models_and_modules_from_outside_are_known_by_their_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (tmp_path / "my_own.py").write_text("def optimizer(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    given = [
        "pipeline=sft",
        f"sft.policy_from={model}",
        "optimizer._target_=my_own.optimizer",
        "allow_targets=[my_own]",
    ]
    settings = settings_for(*given)
    first = gather_provenance(settings, given)
    (model / "config.json").write_text('{"layers": 2}')
    (tmp_path / "my_own.py").write_text("def optimizer(): return None, 1\n")
    changes = changes_of_origin(first, gather_provenance(settings, given))
    assert changes == ["the code of my_own", "the content of sft.policy_from"]


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    settings = settings_for("model=hub", "model.name_or_path=someone/small", "data=hub", "data.name=someone/pairs")
    first = gather_provenance(settings, [])
    assert first["hub"] == {"someone/small": None, "datasets/someone/pairs": None}
    (tmp_path / "models--someone--small" / "refs").mkdir(parents=True)
    (tmp_path / "models--someone--small" / "refs" / "main").write_text("a1b2\n")
    (tmp_path / "datasets--someone--pairs" / "snapshots" / "c3d4").mkdir(parents=True)
    ended = completed(first, settings)
    assert ended["hub"] == {"someone/small": "a1b2", "datasets/someone/pairs": "c3d4"}
    assert ended["arithmetic"]["threads"] == torch.get_num_threads()
    assert changes_of_origin(first, ended) == [], "what was not known yet has not changed"
    (tmp_path / "models--someone--small" / "refs" / "main").write_text("e5f6\n")
    assert changes_of_origin(ended, gather_provenance(settings, [])) == ["someone/small a1b2 -> e5f6"]
    assert completed(ended, settings)["hub"]["someone/small"] == "a1b2", "what was read first is what counts"


def test_only_variables_that_decide_bits_are_recorded_and_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "secret")
    settings = settings_for()
    first = gather_provenance(settings, [])
    assert first["environment"]["OMP_NUM_THREADS"] == "3"
    assert "HF_TOKEN" not in first["environment"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert changes_of_environment(first, gather_provenance(settings, [])) == ["OMP_NUM_THREADS 3 -> 4"]
