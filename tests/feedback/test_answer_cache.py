"""Answers on disk."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from pathlib import Path

import pytest

from rlhf_lightning.feedback.answer_cache import AnswerCache, request_key
from rlhf_lightning.feedback.judge_model import Answer

KEY = request_key({"model": "m", "messages": []})


def test_an_answer_comes_back_and_costs_nothing(tmp_path: Path) -> None:
    AnswerCache(tmp_path).put(KEY, Answer((0.75, 0.125), 'so\n"yes" ü', input_tokens=10, output_tokens=2))
    kept = AnswerCache(tmp_path).get(KEY)
    assert kept == Answer((0.75, 0.125), 'so\n"yes" ü', input_tokens=0, output_tokens=0, cached=True)


def test_a_request_s_key_depends_on_all_of_it_and_not_on_its_order() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "ü"}], "seed": 0}
    assert request_key(request) == request_key(dict(reversed(request.items())))
    others = [{**request, "seed": 1}, {**request, "model": "n"}, {**request, "messages": []}]
    assert len({request_key(one) for one in (request, *others)}) == 4


def test_what_was_never_asked_is_absent(tmp_path: Path) -> None:
    assert AnswerCache(tmp_path / "nowhere").get(KEY) is None


def test_an_answer_that_names_no_option_is_not_kept(tmp_path: Path) -> None:
    AnswerCache(tmp_path).put(KEY, Answer((0.0, 0.0), "well"))
    assert not list(tmp_path.rglob("*"))


NO_ANSWERS = (
    *("", "{", "[]", "{}", "\x00\x01", '{"mass": [1], "text": ""}', '{"mass": [0.5, 0.5]}'),
    *('{"mass": [0.5, "x"], "text": ""}', '{"mass": [NaN, 0.5], "text": ""}'),
    *('{"mass": [-1, 2], "text": ""}', '{"mass": [0, 0], "text": ""}'),
)


@pytest.mark.parametrize("text", NO_ANSWERS)
def test_a_damaged_file_is_absent_and_is_replaced(tmp_path: Path, text: str) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(KEY, Answer((0.5, 0.25)))
    file = next(tmp_path.rglob("*.json"))
    file.write_text(text)
    assert cache.get(KEY) is None
    cache.put(KEY, Answer((0.5, 0.25)))
    assert cache.get(KEY) is not None


def test_a_file_cut_short_at_any_byte_is_absent(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    cache.put(KEY, Answer((0.5, 0.25), "since it is kind"))
    file = next(tmp_path.rglob("*.json"))
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert cache.get(KEY) is None, whole[:length]


def test_files_lie_in_folders_of_a_few(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path)
    for number in range(20):
        cache.put(request_key({"number": number}), Answer((1.0, 0.0)))
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 20
    assert all(file.parent.name == file.name[:2] and file.parent.parent == tmp_path for file in files)


@pytest.mark.parametrize("obstacle", ["a file in the way", "no space"])
def test_a_disk_that_takes_nothing_is_warned_about_once(
    tmp_path: Path, obstacle: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "cache"
    if obstacle == "no space":

        def full(*_: object, **__: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_text", full)
    else:
        place.write_text("")
    cache = AnswerCache(place)
    with caplog.at_level(logging.WARNING):
        for number in range(3):
            cache.put(request_key({"number": number}), Answer((1.0, 0.0)))
    assert len(caplog.records) == 1
    assert "judge.cache" in caplog.text
    assert cache.get(KEY) is None


def test_what_was_written_aside_goes_where_it_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)
    AnswerCache(tmp_path).put(KEY, Answer((1.0, 0.0)))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _write(directory: Path, writer: int) -> None:
    cache = AnswerCache(directory)
    for number in range(200):
        cache.put(request_key({"number": number % 10}), Answer((1.0, 0.0), f"{writer} " * 2000))
        kept = cache.get(request_key({"number": (number + 5) % 10}))
        assert kept is None or len(set(kept.text.split())) == 1, "half of one answer and half of another"
    os._exit(0)


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(tmp_path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 10
    assert all(len(set(json.loads(file.read_text())["text"].split())) == 1 for file in files)
