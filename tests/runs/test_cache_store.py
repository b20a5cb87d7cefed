"""The store: an entry is whole or not there, one process builds it, and what is damaged is not used."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from rlhf_lightning.cli.cache import age, size
from rlhf_lightning.cli.main import main
from rlhf_lightning.runs import cache_store as entries
from rlhf_lightning.runs.cache_store import FILES, RECORD, Entry, Limits, Record, Store, entries_to_prune, prune

KEY = "a" * 64
OTHER = "ab" + "c" * 62


def record(key: str = KEY, stage: str = "sft", **values: object) -> Record:
    plain = Record(
        stage=stage,
        key=key,
        made="2026-11-23T01:00:00+00:00",
        made_by="/runs/first",
        seconds=95.0,
        identity={"settings": {"sft.epochs": 1}},
        metrics={"loss": 0.5, "key": key},
        objective=-0.5,
        evaluation={},
        samples=[],
        history="sft,9,,sft/loss,0.5\n",
        files={},
    )
    return replace(plain, **values)  # type: ignore[arg-type]


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """The directory that a stage has left."""
    directory = tmp_path / "left"
    (directory / "inner").mkdir(parents=True)
    (directory / "model.safetensors").write_bytes(b"weights" * 100)
    (directory / "inner" / "config.json").write_text("{}")
    (directory / "sample_log.jsonl").write_text("{}\n")
    return directory


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture
def filled(store: Store, left: Path) -> Store:
    store.publish(record(), left)
    return store


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def found(store: Store, key: str = KEY) -> Entry:
    entry = store.sound("sft", key, repair=False)
    assert entry is not None
    return entry


def test_what_was_put_there_is_found_there(filled: Store, left: Path, tmp_path: Path) -> None:
    entry = found(filled)
    assert replace(entry.record, files={}) == record()
    entry.copy_into(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(left)
    assert entry.record.bytes == 700 + 2 + 3
    assert filled.sound("sft", OTHER, repair=True) is None


def test_files_are_shared_but_for_those_that_are_appended_to(filled: Store, left: Path, tmp_path: Path) -> None:
    found(filled).copy_into(tmp_path / "again")
    inode = (left / "model.safetensors").stat().st_ino
    assert (tmp_path / "again" / "model.safetensors").stat().st_ino == inode
    assert (left / "model.safetensors").stat().st_mode & 0o222 == 0, "an edit in a run would be one in the cache"
    assert (tmp_path / "again" / "sample_log.jsonl").stat().st_ino != (left / "sample_log.jsonl").stat().st_ino
    assert (tmp_path / "again" / "sample_log.jsonl").stat().st_mode & 0o200
    with (left / "sample_log.jsonl").open("a") as sample_log:
        sample_log.write("more")
    assert found(filled).flaws() == []


def test_where_the_filesystem_has_no_links_files_are_copied(
    store: Store, left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    store.publish(record(), left)
    found(store).copy_into(tmp_path / "again")
    assert files_of(tmp_path / "again") == files_of(left)
    assert (tmp_path / "again" / "model.safetensors").stat().st_mode & 0o200


def shortened(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])


def altered(path: Path) -> None:
    path.chmod(0o600)
    path.write_bytes(b"W" + path.read_bytes()[1:])


def gone(path: Path) -> None:
    path.unlink()


DAMAGES = {
    "shortened": (f"{FILES}/model.safetensors", shortened, "has 699 bytes and not 700"),
    "altered": (f"{FILES}/model.safetensors", altered, "model.safetensors was changed"),
    "gone": (f"{FILES}/inner/config.json", gone, "inner/config.json is missing"),
    "half a record": (RECORD, shortened, "its record cannot be read"),
    "no record": (RECORD, gone, "its record cannot be read"),
    "another's record": (RECORD, lambda path: path.write_text(path.read_text().replace(KEY, OTHER)), "cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_moved_away_and_said_to_be(
    filled: Store, left: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    name, harm, said = DAMAGES[damage]
    kept = shutil.copytree(left, left.with_name("kept"))
    harm(filled.place("sft", KEY) / name)
    assert filled.sound("sft", KEY, repair=False) is None
    assert filled.place("sft", KEY).exists(), "who may not write does not move it"
    assert filled.sound("sft", KEY, repair=True) is None
    assert said in caplog.text
    assert not filled.place("sft", KEY).exists()
    filled.publish(record(), kept)
    assert found(filled).flaws() == []
    assert [path.suffix for path in filled.leftovers()] == [".broken"]


def test_large_files_are_known_by_their_size_when_they_are_used(filled: Store) -> None:
    altered(filled.place("sft", KEY) / FILES / "model.safetensors")
    assert found_flaws(filled, hash_up_to=699) == []
    assert found_flaws(filled, hash_up_to=700) == ["model.safetensors was changed"]


def found_flaws(store: Store, hash_up_to: int) -> list[str]:
    return Entry.read(store.place("sft", KEY)).flaws(hash_up_to)


def test_a_new_entry_takes_the_place_of_the_old_one(filled: Store, left: Path) -> None:
    (left / "inner" / "config.json").unlink()
    filled.publish(record(seconds=5.0), left)
    assert found(filled).record.seconds == 5.0
    assert set(found(filled).record.files) == {"model.safetensors", "sample_log.jsonl"}
    assert filled.leftovers() == []


def test_an_entry_that_could_not_be_written_is_not_there_in_part(
    store: Store, left: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(entries, "flush", full)
    with pytest.raises(OSError, match="No space"):
        store.publish(record(), left)
    assert store.sound("sft", KEY, repair=True) is None
    assert [path for path in store.directory.rglob("*") if path.is_file()] == []


BUILDER = """
import logging, sys, time
from pathlib import Path
from rlhf_lightning.runs.cache_store import Record
from rlhf_lightning.runs.cache_store import Store
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
root, name, key = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
store, left = Store(root / "cache"), root / name
with store.held("sft", key, left, lambda: None):
    if store.sound("sft", key, repair=True) is None:
        with (root / "built").open("a") as file:
            file.write(name + "\\n")
        left.mkdir()
        (left / "model.safetensors").write_text(name)
        print("building", flush=True)
        while not (root / "finish").exists():
            time.sleep(0.05)
        store.publish(Record("sft", key, "now", name, 1.0, {}, {}, None, {}, [], "", {}), left)
    else:
        print("taken", flush=True)
"""


@pytest.fixture
def builder(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that builds an entry unless it is there; it ends its work when there is a file `finish`."""
    started = []

    def start(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", BUILDER, str(tmp_path), name, KEY], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def built(tmp_path: Path) -> list[str]:
    return (tmp_path / "built").read_text().split()


def test_of_two_processes_one_builds_and_the_other_waits_for_it(
    builder: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = builder("first")
    assert first_line(first) == "building"
    second = builder("second")
    told = first_line(second)
    (tmp_path / "finish").touch()
    assert told.startswith(f"Stage sft: waiting for process {first.pid} on ")
    assert str(tmp_path / "first") in told
    said, _ = second.communicate(timeout=60)
    assert said.strip() == "taken"
    assert first.wait(timeout=60) == second.returncode == 0
    assert built(tmp_path) == ["first"]


def test_when_the_builder_is_killed_who_waits_builds_it(
    builder: Callable[[str], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = builder("first")
    assert first_line(first) == "building"
    second = builder("second")
    assert "waiting" in first_line(second)
    killed = time.monotonic()
    first.send_signal(signal.SIGKILL)
    (tmp_path / "finish").touch()
    said, _ = second.communicate(timeout=60)
    assert said.strip() == "building"
    assert time.monotonic() - killed < 10.0
    assert built(tmp_path) == ["first", "second"]
    assert found(Store(tmp_path / "cache")).record.key == KEY


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def three(store: Store, left: Path) -> Store:
    """Entries of 705 bytes each, last used 1, 10 and 40 days ago."""
    for days, key, stage in ((1, "1" * 64, "sft"), (10, "2" * 64, "ppo"), (40, "3" * 64, "sft")):
        store.publish(record(key, stage), left)  # type: ignore[arg-type]
        used = (NOW - timedelta(days=days)).timestamp()
        os.utime(store.place(stage, key) / RECORD, (used, used))
    return store


@pytest.mark.parametrize(
    ("limits", "keys"),
    [
        (Limits(), ""),
        (Limits(unused_for=timedelta(days=30)), "3"),
        (Limits(unused_for=timedelta(days=10)), "32"),
        (Limits(unused_for=timedelta(0), stages=["ppo"]), "2"),
        (Limits(bytes=1410), "3"),
        (Limits(bytes=1409), "32"),
        (Limits(bytes=0, stages=["sft"]), "31"),
    ],
)
def test_what_goes(three: Store, limits: Limits, keys: str) -> None:
    assert "".join(entry.record.key[0] for entry in entries_to_prune(three.entries(), limits, NOW)) == keys


def test_pruning_leaves_what_is_in_use_and_removes_what_was_abandoned(three: Store, tmp_path: Path) -> None:
    leftover = three.place("sft", "1" * 64).with_name(f".{'1' * 64}.123.abcd.part")
    at_work = three.place("ppo", "2" * 64).with_name(f".{'2' * 64}.124.abcd.part")
    for path in (leftover, at_work):
        path.mkdir()
    with three.held("ppo", "2" * 64, tmp_path, lambda: None):
        gone, busy = prune(three, Limits(bytes=0), dry_run=False)
    assert {entry.record.key[0] for entry in gone} == {"1", "3"}
    assert [entry.record.key[0] for entry in busy] == ["2"]
    assert not leftover.exists()
    assert at_work.exists(), "its builder is alive"
    assert [entry.record.key[0] for entry in three.entries()] == ["2"]


def test_whether_somebody_builds_is_asked_without_waiting(three: Store, tmp_path: Path) -> None:
    for name in ("first", "second", "third"):
        three.place("ppo", "2" * 64).with_name(f".{'2' * 64}.124.{name}.part").mkdir()
    with three.held("ppo", "2" * 64, tmp_path, lambda: None):
        started = time.monotonic()
        assert three.leftovers() == []
        assert time.monotonic() - started < 1.5, "milliseconds, on an idle machine"


def test_a_dry_run_removes_nothing(three: Store) -> None:
    assert len(prune(three, Limits(bytes=0), dry_run=True)[0]) == 3
    assert len(list(three.entries())) == 3


def test_the_command(three: Store, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--directory", str(three.directory)]
    assert main(["cache", "list", *place]) == 0
    listed = capsys.readouterr().out
    assert "3 entries, 2.12 kB" in listed
    assert "/runs/first" in listed
    assert main(["cache", "show", "2", *place]) == 0
    shown = capsys.readouterr().out
    assert f"Stage ppo, key {'2' * 64}" in shown
    assert "sft.epochs" in shown
    assert "yes: each file has the hash" in shown
    assert main(["cache", "prune", *place, "--max-size", "1kB", "--dry-run"]) == 0
    assert "2 entries would go, 1.41 kB." in capsys.readouterr().out
    assert main(["cache", "prune", *place, "--max-size", "1kB"]) == 0
    assert "2 entries removed" in capsys.readouterr().out
    assert [entry.record.key[0] for entry in three.entries()] == ["1"]


def test_the_command_told_wrong(three: Store, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--directory", str(three.directory)]
    assert main(["cache", "show", "9", *place]) == 2
    assert "No key begins with '9'." in capsys.readouterr().err
    assert main(["cache", "show", "", *place]) == 2
    assert "3 keys begin with ''" in capsys.readouterr().err
    assert main(["cache", "list", "--directory", "nowhere"]) == 2
    assert "There is no stage cache here." in capsys.readouterr().err
    for wrong in (["--older-than", "soon"], ["--max-size", "10"]):
        with pytest.raises(SystemExit):
            main(["cache", "prune", *place, *wrong])


def test_times_and_sizes() -> None:
    assert (age("90m"), age("2w")) == (timedelta(hours=1.5), timedelta(days=14))
    assert (size("1.5GB"), size("10 kB")) == (1_500_000_000, 10_000)


def test_the_command_brings_no_torch() -> None:
    code = "import sys; from rlhf_lightning.cli.cache import parser; parser(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_that_somebody_waits_is_said_once_in_a_while(
    filled: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits calls back at every look, so that its other processes are not left without word."""
    monkeypatch.setattr("rlhf_lightning.runs.cache_store.POLL_SECONDS", 0.0)
    calls = []

    def while_waiting() -> None:
        calls.append(1)
        if len(calls) == 3:
            holding.close()

    holding = ExitStack()
    holding.enter_context(filled.held("sft", KEY, tmp_path / "holder", lambda: None))
    with caplog.at_level(logging.INFO), filled.held("sft", KEY, tmp_path, while_waiting):
        pass
    assert len(calls) == 3
    assert caplog.text.count("waiting for process") == 1
