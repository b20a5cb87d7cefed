"""Where a model lies is found out at once, with or without a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import constants
from transformers import PreTrainedModel

from rlhf_lightning.errors import ArtifactError, ModelError
from rlhf_lightning.models import hub
from rlhf_lightning.models.hub import ModelSource, hub_is_reachable, read_architectures
from rlhf_lightning.models.loading import load_classifier, load_policy, load_tokenizer

MakeModel = Callable[..., PreTrainedModel]


def unreachable(*_: Any, **__: Any) -> None:
    raise httpx.ConnectError("no route to host")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub does not answer, and the cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(httpx, "head", unreachable)


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("load", [load_policy, load_classifier, load_tokenizer])
def test_a_hub_id_without_network_is_refused_at_once(load: Callable[[ModelSource], object]) -> None:
    started = time.perf_counter()
    with pytest.raises(ModelError, match="'someone/some-model' is not in the local cache") as raised:
        load(ModelSource("someone/some-model"))
    assert time.perf_counter() - started < 5.0
    assert constants.HF_HUB_CACHE in str(raised.value.where)
    assert "model=courtesy" in str(raised.value.fix)


@pytest.mark.parametrize("path", ["/nowhere/model", "./nowhere", "~/nowhere", "outputs/some-run/sft"])
def test_what_can_only_be_a_path_is_not_looked_up_at_the_hub(path: str) -> None:
    with pytest.raises(ModelError, match="No such model directory") as raised:
        ModelSource(path).loading_arguments()
    assert raised.value.where == path


@pytest.mark.usefixtures("no_network")
def test_a_cached_model_is_used_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cached(name: str, file: str, revision: str | None = None) -> str:
        return str(tmp_path / name / file / str(revision))

    monkeypatch.setattr(hub, "try_to_load_from_cache", cached)
    assert ModelSource("someone/some-model").loading_arguments()["local_files_only"] is True


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(httpx, "head", asked)
    assert not hub_is_reachable()


@pytest.mark.usefixtures("no_network")
def test_a_local_directory_needs_no_network(make_policy: MakeModel, tmp_path: Path) -> None:
    make_policy().save_pretrained(tmp_path / "model")
    assert load_policy(ModelSource(str(tmp_path / "model"))).config.vocab_size == 50


def test_code_of_others_is_not_run_unless_it_is_trusted(tmp_path: Path) -> None:
    assert ModelSource(str(tmp_path)).loading_arguments()["trust_remote_code"] is False
    assert ModelSource(str(tmp_path), trust_remote_code=True).loading_arguments()["trust_remote_code"] is True


def test_architectures_are_read_from_the_config(make_policy: MakeModel, tmp_path: Path) -> None:
    make_policy("gpt2").save_pretrained(tmp_path)
    assert read_architectures(tmp_path) == ["GPT2LMHeadModel"]
    (tmp_path / "config.json").write_text("{}")
    assert read_architectures(tmp_path) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_an_unreadable_config_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match="Not a model directory") as raised:
        read_architectures(tmp_path)
    assert raised.value.where == str(tmp_path / "config.json")
    assert raised.value.fix
