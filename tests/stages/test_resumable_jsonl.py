"""What a stage has done so far survives whatever stops it, and nothing else is gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_lightning.stages.restore import ResumableJsonl, restore
from rlhf_lightning.stages.run_directory import RunDirectory

KEY = "0123456789abcdef"


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    ResumableJsonl(tmp_path, "chains.jsonl", KEY).add([{"number": 0}, {"number": 1, "text": "a\u2028b"}])
    again = ResumableJsonl(tmp_path, "chains.jsonl", KEY)
    assert again.rows == [{"number": 0}, {"number": 1, "text": "a\u2028b"}]
    again.add([{"number": 2}])
    assert [row["number"] for row in ResumableJsonl(tmp_path, "chains.jsonl", KEY).rows] == [0, 1, 2]


@pytest.mark.parametrize("cut", [1, 5, 20, 29])
def test_half_a_batch_is_cut_off(tmp_path: Path, cut: int) -> None:
    journal = ResumableJsonl(tmp_path, "chains.jsonl", KEY)
    journal.add([{"number": 0}])
    journal.add([{"number": 1}, {"number": 2}])
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-cut])
    again = ResumableJsonl(tmp_path, "chains.jsonl", KEY)
    assert [row["number"] for row in again.rows] == [0]
    again.add([{"number": 1}, {"number": 2}])
    assert again.path.read_bytes() == content


def test_what_another_key_began_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ResumableJsonl(tmp_path, "chains.jsonl", KEY).add([{"number": 0}])
    other = ResumableJsonl(tmp_path, "helpful.jsonl", KEY)
    other.add([{"number": 7}])
    assert ResumableJsonl(tmp_path, "chains.jsonl", "f" * 16).rows == []
    assert "begun anew" in caplog.text
    assert other.path.exists()
    assert len(list(tmp_path.glob("chains.*"))) == 0


def test_the_finished_file_has_its_own_name(tmp_path: Path) -> None:
    journal = ResumableJsonl(tmp_path, "chains.jsonl", KEY)
    journal.add([{"number": 0}, {"number": 1}])
    ResumableJsonl(tmp_path, "chains.jsonl", KEY).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["chains.jsonl"]
    lines = (tmp_path / "chains.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"number": 0}, {"number": 1}]
    empty = ResumableJsonl(tmp_path, "helpful.jsonl", KEY)
    empty.finish()
    assert (tmp_path / "helpful.jsonl").read_text() == ""


def test_a_stage_that_begins_again_keeps_its_journals_and_loses_the_rest(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", {"seed": 1}, [])
    directory = run.stage_dir("critique_revision")
    ResumableJsonl(directory, "chains.jsonl", KEY).add([{"number": 0}])
    (directory / "train.jsonl").write_text("{}\n")
    (directory / "half").mkdir()
    assert restore(run, "critique_revision") is None
    assert [path.name for path in directory.iterdir()] == ["chains.0123456789ab.part.jsonl"]
