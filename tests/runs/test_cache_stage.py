"""What one run's stage has left another run takes, and a cache that fails is no reason to fail."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.evaluation.summary import SampleRow, read_samples
from rlhf_lightning.runs import cache_store as entries
from rlhf_lightning.runs import cache_store as stores
from rlhf_lightning.runs.identity import StageKeys
from rlhf_lightning.runs.stage_cache import KEYS, CachedResult, StageCache
from rlhf_lightning.stages.run_directory import RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings


@pytest.fixture
def settings(composed: Callable[..., RunSettings]) -> RunSettings:
    return composed("logger=none")


@pytest.fixture
def opened(settings: RunSettings, tmp_path: Path) -> Callable[..., StageCache]:
    """The cache as a run of that name may use it."""

    def open_cache(mode: str, name: str) -> StageCache:
        told = settings.cache.model_copy(update={"mode": mode, "directory": str(tmp_path / "cache")})
        run = RunDirectory.create(tmp_path / name, settings.model_dump(mode="json"), [])
        return StageCache(told, run, StageKeys(settings, "cpu", lambda: pytest.fail("no data is read")))

    return open_cache


def stage_run(cache: StageCache, text: str = "weights") -> str:
    """What the pipeline does with a stage: `taken` or `run`."""
    with cache.turn("sft", lambda: None) as entry:
        if entry is not None:
            cache.take(entry)
            return "taken"
        directory = cache.run.stage_dir("sft")
        (directory / "model.safetensors").write_text(text)
        with (cache.run.path / "history.csv").open("w") as file:
            file.write("stage,step,episodes,name,value\nother,1,,other/loss,1.0\nsft,9,,sft/loss,0.5\n")
        cache.begins("sft", goes_on=False)
        metrics = {"loss": 0.5, "key": cache.keys.of("sft")}
        cache.keep("sft", CachedResult(95.0, metrics, objective=-0.5, evaluation={}, samples=[]))
        return "run"


def content(cache: StageCache) -> str:
    return (cache.run.stage_dir("sft") / "model.safetensors").read_text()


def test_what_one_run_has_made_another_takes(opened: Callable[..., StageCache]) -> None:
    assert stage_run(opened("on", "one")) == "run"
    other = opened("on", "other")
    (other.run.stage_dir("sft") / "half.safetensors").write_text("of a run that was cut off")
    (other.run.path / "history.csv").write_text("stage,step,episodes,name,value\nsft,3,,sft/loss,0.9\n")
    assert stage_run(other) == "taken"
    assert [path.name for path in other.run.stage_dir("sft").iterdir()] == ["model.safetensors"]
    assert (other.run.path / "history.csv").read_text() == "stage,step,episodes,name,value\nsft,9,,sft/loss,0.5\n"


def test_the_modes(opened: Callable[..., StageCache], tmp_path: Path) -> None:
    assert stage_run(opened("read_only", "reader")) == "run"
    assert not (tmp_path / "cache").exists(), "read_only leaves nothing"
    assert stage_run(opened("off", "alone")) == "run"
    assert not (tmp_path / "cache").exists(), "off leaves nothing"
    assert stage_run(opened("on", "first"), "old") == "run"
    assert stage_run(opened("off", "alone again"), "own") == "run"
    assert stage_run(opened("refresh", "again"), "new") == "run"
    reader = opened("read_only", "reader again")
    assert (stage_run(reader), content(reader)) == ("taken", "new")


def test_a_cache_that_cannot_be_written_fails_no_run(
    opened: Callable[..., StageCache], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert stage_run(opened("on", "one")) == "run"
    assert "The cache cannot be written" in caplog.text


def test_a_full_disk_fails_no_run(
    opened: Callable[..., StageCache], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(entries, "flush", full)
    assert stage_run(opened("on", "one")) == "run"
    assert caplog.text.count("could not be put into the cache: [Errno 28] No space left on device") == 1
    monkeypatch.undo()
    assert stage_run(opened("on", "other")) == "run"


def test_a_stage_that_goes_on_under_another_key_is_not_kept(opened: Callable[..., StageCache], tmp_path: Path) -> None:
    cache = opened("on", "one")
    key = cache.keys.of("sft")
    cache.run.write_json(KEYS, {"sft": "the key of yesterday's code"})
    cache.begins("sft", goes_on=True)
    assert cache.keys.of("sft") not in (key, "the key of yesterday's code")
    cache.keep("sft", CachedResult(1.0, {}, None, {}, []))
    assert not (tmp_path / "cache").exists()


def test_a_stage_that_goes_on_under_its_key_is_kept(opened: Callable[..., StageCache]) -> None:
    cache = opened("on", "one")
    cache.begins("sft", goes_on=False)
    cache.begins("sft", goes_on=True)
    (cache.run.stage_dir("sft") / "model.safetensors").write_text("weights")
    cache.keep("sft", CachedResult(1.0, {}, None, {}, []))
    assert stage_run(opened("on", "other")) == "taken"


def test_an_adapter_names_the_base_of_the_run_that_it_lies_in(opened: Callable[..., StageCache]) -> None:
    maker = opened("on", "maker")
    config = maker.run.stage_dir("sft") / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(maker.run.path / "base"), "r": 8}))
    assert stage_run(maker) == "run"
    taker = opened("on", "taker")
    assert stage_run(taker) == "taken"
    taken = json.loads((taker.run.stage_dir("sft") / "adapter_config.json").read_text())
    assert taken == {"base_model_name_or_path": str(taker.run.path / "base"), "r": 8}
    assert stage_run(opened("on", "third")) == "taken", "and the entry is as it was"


def test_samples_are_taken_with_the_stage_that_made_them(opened: Callable[..., StageCache]) -> None:
    rows = [SampleRow("iid", "hello", before="hm", after="hi", gold_before=-1.0, gold_after=0.5)]
    maker, taker = opened("on", "maker"), opened("on", "taker")
    maker.keep("sft", CachedResult(1.0, {}, objective=None, evaluation={}, samples=rows))
    with taker.turn("sft", lambda: None) as entry:
        assert entry is not None
        assert taker.take(entry).samples == rows
    assert read_samples(taker.run.path) == rows


@pytest.mark.parametrize(("mode", "does"), [("on", "taken"), ("refresh", "run")])
def test_a_cache_that_became_read_only_is_read_by_who_would_have_read_it(
    opened: Callable[..., StageCache], monkeypatch: pytest.MonkeyPatch, mode: str, does: str
) -> None:
    assert stage_run(opened("on", "one")) == "run"

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(stores, "FileLock", refuse)
    assert stage_run(opened(mode, "other")) == does


def test_all_that_is_kept_is_flushed_to_the_disk(
    opened: Callable[..., StageCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power failure an entry must not be there with files that are not."""
    flushed = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.add(os.fstat(descriptor).st_ino))
    cache = opened("on", "one")
    (cache.run.stage_dir("sft") / "inner").mkdir()
    (cache.run.stage_dir("sft") / "inner" / "config.json").write_text("{}")
    assert stage_run(cache) == "run"
    entry = cache.store.place("sft", cache.keys.of("sft"))
    kept = {path.relative_to(entry).as_posix(): path.stat().st_ino for path in entry.rglob("*")}
    whole = {"record.json", "files", "files/model.safetensors", "files/inner", "files/inner/config.json"}
    assert kept.keys() == whole
    assert {*kept.values(), entry.stat().st_ino, entry.parent.stat().st_ino} <= flushed


def test_a_file_that_cannot_be_linked_for_another_reason_is_not_copied(
    opened: Callable[..., StageCache], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy is for filesystems without links; a disk that fails is reported, and nothing is kept."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", fail)
    assert stage_run(opened("on", "one")) == "run"
    assert "could not be put into the cache: [Errno 5]" in caplog.text
    monkeypatch.undo()
    assert stage_run(opened("on", "other")) == "run"
