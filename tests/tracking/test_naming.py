"""Names of runs and groups, and what must not stand in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.tracking.naming import LONGEST_RUN, distinguishing_overrides, group_name, run_name
from rlhf_lightning.tracking.redaction import REDACTED, redact


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["kl.coef=0.2", "seed=1"], "kl.coef=0.2,seed=1"),
        (["+peft=lora", "++ppo.epochs=2"], "peft=lora,ppo.epochs=2"),
        (["kl=none", "paths.outputs=/tmp/x", "logger=none", "logger.mode=offline", "name=x", "tags=[a]"], "kl=none"),
        (["paths.outputs=/tmp/x"], "default"),
        (["judge.api_key=sk-123"], f"judge.api_key={REDACTED}"),
    ],
)
def test_run_names(overrides: list[str], name: str) -> None:
    assert run_name(overrides, "default") == name


def test_long_names_are_cut_and_stay_different() -> None:
    common = [f"ppo.option_{index}=value" for index in range(10)]
    one, two = run_name([*common, "seed=1"], ""), run_name([*common, "seed=2"], "")
    assert len(one) == len(two) == LONGEST_RUN
    assert one != two
    assert one.startswith("ppo.option_0=value,ppo.option_1")
    assert run_name([*common, "seed=1"], "") == one


def test_a_job_is_named_by_what_was_chosen_for_it(tmp_path: Path) -> None:
    told = {"overrides": ["trainer=gpu", "kl.coef=0.1,0.2"]}
    job = ["trainer=gpu", "kl.coef=0.1", "seed=3"]
    (tmp_path / "sweep.json").write_text(json.dumps(told))
    assert distinguishing_overrides(tmp_path / "0", job) == ["kl.coef=0.1", "seed=3"]
    assert distinguishing_overrides(tmp_path / "0", ["trainer=gpu"]) == ["trainer=gpu"], "rather than nothing"
    assert distinguishing_overrides(tmp_path / "run", job) == job
    assert distinguishing_overrides(tmp_path / "deeper" / "0", job) == job


@pytest.mark.parametrize(
    ("run_dir", "group"),
    [
        ("outputs/runs/2026-03-01/14-05-09-123456", "2026-03-01_14-05-09-123456"),
        ("outputs/multirun/2026-03-01/14-05-09-123456/3", "2026-03-01_14-05-09-123456"),
        ("outputs/my_run", "my_run"),
        ("outputs/my_sweep/0", "my_sweep"),
    ],
)
def test_groups(tmp_path: Path, run_dir: str, group: str) -> None:
    assert group_name(tmp_path / run_dir) == group


def test_secrets_are_redacted_and_nothing_else() -> None:
    config = {
        "api_key": "sk-1",
        "hfToken": "hf-1",
        "nested": [{"password": "p", "note": "n"}],
        "secret": ["a", "b"],
        "token": None,
        "max_new_tokens": 32,
        "tokenizer": "bpe",
        "keyboard": "qwerty",
        "url": "https://user:pass@host/path",
        "mail": "a@b",
    }
    assert redact(config) == {
        "api_key": REDACTED,
        "hfToken": REDACTED,
        "nested": [{"password": REDACTED, "note": "n"}],
        "secret": [REDACTED, REDACTED],
        "token": None,
        "max_new_tokens": 32,
        "tokenizer": "bpe",
        "keyboard": "qwerty",
        "url": f"https://{REDACTED}@host/path",
        "mail": "a@b",
    }
    assert config["api_key"] == "sk-1", "the config itself is left alone"
