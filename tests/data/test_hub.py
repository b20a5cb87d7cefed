"""Datasets in local directories and files; and no network."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import datasets
import pytest

from rlhf_lightning.data import hub
from rlhf_lightning.data.settings import HubData
from rlhf_lightning.data.sources import RecordedSource, open_source
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Prompt, Ranking

PAIRS = [{"prompt": f"question {number}", "chosen": "good", "rejected": "bad", "id": number} for number in range(40)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "pairs"
    path.mkdir()
    (path / "train.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


def test_a_local_directory_and_a_file_of_it(directory: Path, make_hub_data: Callable[..., HubData]) -> None:
    for name in (directory, directory / "train.jsonl"):
        source = open_source(make_hub_data(name), seed=0)
        comparisons = source.comparisons()
        assert comparisons is not None
        assert len(comparisons.train) + len(comparisons.held_out) == 40


def test_datasets_that_were_saved_to_disk(tmp_path: Path, make_hub_data: Callable[..., HubData]) -> None:
    one = datasets.Dataset.from_list([{"prompt": pair["prompt"]} for pair in PAIRS])
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": one}).save_to_disk(tmp_path / "several")
    for name, split in (("one", "train"), ("several", "test")):
        source = open_source(make_hub_data(tmp_path / name, split=split, record="prompt"), seed=0)
        assert len(source.prompts()) + len(source.evaluation_prompts()["held_out"]) == 40
    with pytest.raises(DataError, match="no split 'train' but test"):
        open_source(make_hub_data(tmp_path / "several", record="prompt"), seed=0)


def test_rankings(tmp_path: Path, make_hub_data: Callable[..., HubData]) -> None:
    row = {"prompt": "hello", "responses": ["a", "b"], "ranks": [2, 1]}
    (tmp_path / "rankings.jsonl").write_text(json.dumps(row) + "\n")
    source = open_source(make_hub_data(tmp_path / "rankings.jsonl", record="ranking"), seed=0)
    assert isinstance(source, RecordedSource)
    assert source.given_comparisons == [Ranking(Prompt("hello"), ("a", "b"), (2, 1))]


def test_a_malformed_row_is_named(directory: Path, make_hub_data: Callable[..., HubData]) -> None:
    with pytest.raises(DataError) as caught:
        open_source(make_hub_data(directory, record="ranking"), seed=0)
    assert caught.value.where == f"{directory} (train): row 1, field 'responses'"


@pytest.mark.parametrize(
    ("values", "what"),
    [({"split": "test"}, 'Unknown split "test"'), ({"config": "other"}, "'other' not found")],
)
def test_a_split_or_config_that_does_not_exist(
    values: dict[str, str], what: str, directory: Path, make_hub_data: Callable[..., HubData]
) -> None:
    with pytest.raises(DataError, match=what):
        open_source(make_hub_data(directory, **values), seed=0)


def test_without_network_one_clear_error_at_once(
    make_hub_data: Callable[..., HubData], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens on the discard port of this machine.
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    offline_before = datasets.config.HF_HUB_OFFLINE
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        open_source(make_hub_data("somebody/some-pairs"), seed=0)
    assert time.monotonic() - started < 5
    assert "'somebody/some-pairs' is not in the cache, and the hub cannot be reached" in caught.value.what
    assert "cache:" in (caught.value.where or "")
    assert "data=files" in (caught.value.fix or "")
    assert offline_before == datasets.config.HF_HUB_OFFLINE


def test_a_file_of_an_unknown_format(tmp_path: Path, make_hub_data: Callable[..., HubData]) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("hello")
    with pytest.raises(DataError, match="format is not known"):
        list(hub.hub_rows(make_hub_data(path)))
