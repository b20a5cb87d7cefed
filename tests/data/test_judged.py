"""Comparisons that people made, in every form that a calibration file may have."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from rlhf_lightning.data.comparisons import read_human_comparisons
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Message, Preference, Prompt

LAMP = Prompt((Message("user", "How do I dim a lamp?"),))


def asked(response: str) -> str:
    return f"\n\nHuman: How do I dim a lamp?\n\nAssistant: {response}"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_transcripts_under_either_name(tmp_path: Path) -> None:
    rows = [
        {"correct": asked("Turn it down."), "incorrect": asked("No idea.")},
        {"chosen": asked("Turn it down."), "rejected": asked("")},
    ]
    expected = [Preference(LAMP, "Turn it down.", "No idea."), Preference(LAMP, "Turn it down.", "")]
    assert read_human_comparisons(write(tmp_path / "judged.jsonl", *rows)) == expected


def test_preferences_and_rankings(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "dim?", "chosen": "yes", "rejected": "no"},
        {"prompt": "dim?", "responses": ["first", "second", "third"], "ranks": [1, 2, 2]},
        {
            "chosen": [{"role": "user", "content": "dim?"}, {"role": "assistant", "content": "yes"}],
            "rejected": [{"role": "user", "content": "dim?"}, {"role": "assistant", "content": "no"}],
        },
    ]
    expected = [
        Preference(Prompt("dim?"), "yes", "no"),
        Preference(Prompt("dim?"), "first", "second"),
        Preference(Prompt("dim?"), "first", "third"),
        Preference(Prompt((Message("user", "dim?"),)), "yes", "no"),
    ]
    assert read_human_comparisons(write(tmp_path / "judged.jsonl", *rows)) == expected


def test_text_beside_a_prompt_is_a_response_even_where_it_looks_like_a_transcript(tmp_path: Path) -> None:
    row = {"prompt": "Quote me a dialogue.", "chosen": asked("a"), "rejected": asked("b")}
    expected = Preference(Prompt("Quote me a dialogue."), asked("a"), asked("b"))
    assert read_human_comparisons(write(tmp_path / "judged.jsonl", row)) == [expected]


def test_a_directory_of_compressed_files(tmp_path: Path) -> None:
    for number in range(2):
        row = {"chosen": asked(f"{number} turns."), "rejected": asked("Never.")}
        (tmp_path / f"{number}.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    assert [one.chosen for one in read_human_comparisons(tmp_path)] == ["0 turns.", "1 turns."]


@pytest.mark.parametrize(
    ("row", "field", "what"),
    [
        ({"correct": asked("a")}, "incorrect", "is missing"),
        ({"incorrect": asked("a")}, "correct", "is missing"),
        ({"correct": asked("a"), "incorrect": asked("a")}, "incorrect", "is the same transcript as 'correct'"),
        ({"correct": asked("a"), "incorrect": "\n\nHuman: Hi\n\nAssistant: b"}, "incorrect", "differs from 'correct'"),
        ({"correct": "a", "incorrect": "b"}, "correct", "does not begin with"),
        ({"chosen": "a", "rejected": "b"}, "chosen", "does not begin with"),
        ({"chosen": asked("a")}, "rejected", "must be given"),
        ({"prompt": "dim?", "better": "a"}, "chosen", "must be given"),
        ({"prompt": "dim?", "chosen": "a", "rejected": 3}, "rejected", "got int 3"),
    ],
)
def test_a_malformed_row_names_its_line_and_field(tmp_path: Path, row: dict[str, Any], field: str, what: str) -> None:
    path = write(tmp_path / "judged.jsonl", {"correct": asked("a"), "incorrect": asked("b")}, row)
    with pytest.raises(DataError) as caught:
        read_human_comparisons(path)
    assert caught.value.where == f"{path}:2, field '{field}'"
    assert what in caught.value.what


def test_malformed_rows_can_be_left_out_and_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"correct": asked("a"), "incorrect": asked("b")}
    path = write(tmp_path / "judged.jsonl", good, {"correct": asked("a")}, {**good, "incorrect": asked("c")})
    with caplog.at_level(logging.INFO):
        read = read_human_comparisons(path, on_bad_record="skip")
    assert [one.rejected for one in read] == ["b", "c"]
    assert f"{path}: 2 comparisons on 1 prompts, 1 malformed rows skipped" in caplog.text


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_human_comparisons(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="There are no records"):
        read_human_comparisons(tmp_path / "empty.jsonl")
