"""Files, directories and the embedded world as sources of records."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_lightning.data.settings import CourtesyData, FileData, HHRlhfData
from rlhf_lightning.data.sources import open_source
from rlhf_lightning.data.splits import is_held_out
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Demonstration, Preference, Prompt, Ranking

PAIRS = [{"prompt": f"question {number}", "chosen": f"good {number}", "rejected": "bad"} for number in range(40)]


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_gzip(path: Path, records: Iterable[Any]) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write("".join(json.dumps(record) + "\n" for record in records))
    return path


def write_parquet(path: Path, records: Iterable[Any]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("pairs.jsonl", write_jsonl), ("pairs.jsonl.gz", write_gzip), ("pairs.parquet", write_parquet)],
)
def test_every_format_gives_the_same_records(
    name: str, write: Callable[..., Path], tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    conversation = {
        "prompt": [{"role": "system", "content": "be é"}, {"role": "user", "content": "why"}],
        "chosen": [{"role": "assistant", "content": "so"}],
        "rejected": [{"role": "assistant", "content": ""}],
    }
    for records in (PAIRS, [conversation] * 2):
        source = open_source(make_file_data(preferences=write(tmp_path / name, records)), seed=0)
        reference = open_source(make_file_data(preferences=write_jsonl(tmp_path / "reference.jsonl", records)), seed=0)
        assert source.given_comparisons == reference.given_comparisons
        assert source.report().read == len(records)


def test_the_sides_share_no_prompt_and_everything_is_derived(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    again = {**PAIRS[0], "rejected": "worse"}
    path = write_jsonl(tmp_path / "pairs.jsonl", [*PAIRS, again, PAIRS[1]])
    source = open_source(make_file_data(preferences=path), seed=0)
    comparisons = source.comparisons()
    assert comparisons is not None
    train = {each.prompt for each in comparisons.train}
    held_out = {each.prompt for each in comparisons.held_out}
    assert len(train) + len(held_out) == 40
    assert not train & held_out
    assert source.prompts() == [Prompt(each["prompt"]) for each in PAIRS if Prompt(each["prompt"]) in train]
    assert source.evaluation_prompts() == {
        "held_out": [Prompt(each["prompt"]) for each in PAIRS if Prompt(each["prompt"]) in held_out]
    }
    # The response of the first pair was chosen twice, and is imitated once.
    assert source.demonstrations() == [
        Demonstration(Prompt(each["prompt"]), each["chosen"]) for each in PAIRS if Prompt(each["prompt"]) in train
    ]
    texts = list(source.texts())
    assert not {prompt.text for prompt in held_out} & set(texts)
    assert {prompt.text for prompt in train} < set(texts)
    assert (source.report().read, source.report().duplicates) == (42, 1)


def test_given_demonstrations_and_prompts_go_before_derived_ones(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    ranking = {"prompt": "ranked", "responses": ["c", "a", "b"], "ranks": [3, 1, 1]}
    prompts = [{"prompt": f"prompt {number}"} for number in range(40)]
    demonstrations = [{"prompt": f"shown {number}", "response": "so"} for number in range(40)]
    paths = {
        "preferences": write_jsonl(tmp_path / "pairs.jsonl", PAIRS),
        "rankings": write_jsonl(tmp_path / "rankings.jsonl", [ranking]),
        "prompts": write_jsonl(tmp_path / "prompts.jsonl", prompts),
        "demonstrations": write_jsonl(tmp_path / "demonstrations.jsonl", demonstrations),
    }
    source = open_source(make_file_data(**paths), seed=0)
    assert {prompt.last_turn.split()[0] for prompt in source.prompts()} == {"prompt"}
    assert {each.prompt.last_turn.split()[0] for each in source.demonstrations()} == {"shown"}
    comparisons = source.comparisons()
    assert comparisons is not None
    kinds = {type(each) for each in comparisons.train + comparisons.held_out}
    assert kinds == {Preference, Ranking}


def test_the_first_of_the_best_ranked_responses_is_imitated(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    rankings = [
        {"prompt": f"ranked {number}", "responses": ["c", "a", "b"], "ranks": [3, 1, 1]} for number in range(10)
    ]
    source = open_source(make_file_data(rankings=write_jsonl(tmp_path / "rankings.jsonl", rankings)), seed=0)
    assert {each.response for each in source.demonstrations()} == {"a"}


def test_prompts_alone_have_no_demonstrations_and_no_comparisons(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    path = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"prompt {number}"} for number in range(40)])
    source = open_source(make_file_data(prompts=path), seed=0)
    assert source.comparisons() is None
    with pytest.raises(DataError, match="no demonstrations"):
        source.demonstrations()


def test_a_malformed_record_stops_the_run_with_file_line_field_and_fix(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [PAIRS[0], PAIRS[1], {**PAIRS[2], "rejected": 5}])
    with pytest.raises(DataError) as caught:
        open_source(make_file_data(preferences=path), seed=0)
    message = str(caught.value)
    assert f"{path}:3, field 'rejected'" in message
    assert "must be a string or a list of {role, content}; got int 5" in message
    assert "fix:" in message


def test_malformed_records_are_skipped_and_counted(tmp_path: Path, make_file_data: Callable[..., FileData]) -> None:
    lines = [
        json.dumps(PAIRS[0]).encode(),
        b"",
        b'{"prompt": "cut off',
        b"[1, 2]",
        b'{"prompt": "\xff"}',
        b'{"prompt": "a", "chosen": "b"}',
        b'{"margin": ' + b"9" * 5000 + b"}",
        json.dumps(PAIRS[1]).encode(),
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
    report = open_source(make_file_data(preferences=path, on_bad_record="skip"), seed=0).report()
    assert (report.read, report.skipped) == (2, 5)
    assert [reason.split(": ")[0] for reason in report.reasons] == [
        f"{path}:3",
        f"{path}:4",
        f"{path}:5",
        f"{path}:6, field 'rejected'",
        f"{path}:7",
    ]
    assert "not UTF-8 text: byte 13 of it is 0xff" in report.reasons[2]


def test_a_malformed_row_of_a_table_is_named_by_its_number(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    path = write_parquet(tmp_path / "pairs.parquet", [PAIRS[0], {**PAIRS[1], "chosen": None}])
    with pytest.raises(DataError) as caught:
        open_source(make_file_data(preferences=path), seed=0)
    assert caught.value.where == f"{path}: row 2, field 'chosen'"


def test_a_cap_reads_the_first_well_formed_records(tmp_path: Path, make_file_data: Callable[..., FileData]) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", [{}, *PAIRS])
    settings = make_file_data(preferences=path, on_bad_record="skip", max_records=3)
    source = open_source(settings, seed=0)
    assert [each.prompt.text for each in source.given_comparisons] == ["question 0", "question 1", "question 2"]
    assert source.report().skipped == 1


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("pairs.jsonl", b"\n \n", "There are no records."),
        ("pairs.jsonl", b"{}\n{}\n", "There are no records: all 2 are malformed."),
        ("pairs.txt", b"{}", "format is not known"),
        ("pairs.jsonl.gz", b"this is not compressed", "cannot be read"),
        ("pairs.jsonl.gz", gzip.compress(b'{"prompt": "a"}\n' * 1000, mtime=0)[:-20], "cannot be read"),
        ("pairs.parquet", b"this is no table", "cannot be read as parquet"),
        (None, b"", "does not exist"),
    ],
)
def test_files_that_hold_no_records(
    name: str | None, content: bytes, what: str, tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    path = tmp_path / (name or "missing.jsonl")
    if name is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        open_source(make_file_data(preferences=path, on_bad_record="skip"), seed=0)
    assert what in caught.value.what
    assert str(path) in (caught.value.where or "")
    assert caught.value.fix


def test_no_files_at_all(make_file_data: Callable[..., FileData]) -> None:
    with pytest.raises(DataError, match="No data files are named"):
        open_source(make_file_data(), seed=0)


def test_a_fraction_that_leaves_a_side_empty_is_named(tmp_path: Path, make_file_data: Callable[..., FileData]) -> None:
    path = write_jsonl(tmp_path / "pairs.jsonl", PAIRS[:3])
    source = open_source(make_file_data(preferences=path, held_out_fraction=1e-9), seed=0)
    with pytest.raises(DataError, match="none fell to the held-out comparisons"):
        source.comparisons()


def test_a_directory_of_transcripts(tmp_path: Path, make_hh_data: Callable[..., HHRlhfData]) -> None:
    def transcripts(numbers: range) -> list[dict[str, str]]:
        opening = "\n\nHuman: question {}\n\nAssistant:"
        return [{"chosen": f"{opening.format(n)} good", "rejected": f"{opening.format(n)} bad"} for n in numbers]

    write_gzip(tmp_path / "b.jsonl.gz", transcripts(range(20, 40)))
    write_jsonl(tmp_path / "a.jsonl", transcripts(range(20)))
    (tmp_path / "README.md").write_text("not data")
    source = open_source(make_hh_data(tmp_path), seed=0)
    assert [each.prompt.last_turn for each in source.given_comparisons] == [f"question {n}" for n in range(40)]
    assert all(is_held_out(prompt, 0.5) for prompt in source.evaluation_prompts()["held_out"])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no record files"):
        open_source(make_hh_data(empty), seed=0)


def test_the_courtesy_world_has_no_recorded_comparisons() -> None:
    settings = CourtesyData.model_validate(
        {
            "kind": "courtesy",
            "max_prompt_length": 32,
            "max_response_length": 36,
            "on_long_record": "truncate",
            "pairing": "all",
            "demonstrations": 50,
            "annotator": {
                "length_bias": 0.0,
                "politeness_bias": 0.0,
                "boilerplate_bias": 0.0,
                "refusal_penalty": 0.0,
                "flip_rate": 0.0,
            },
            "demonstrator": {
                "harm_rate": 0.4,
                "rude_rate": 0.4,
                "polite_rate": 0.2,
                "untrue_rate": 0.4,
                "filler_rate": 0.5,
                "boilerplate_rate": 0.1,
                "over_refusal_rate": 0.1,
                "off_topic_rate": 0.1,
                "unknown_rate": 0.05,
            },
        }
    )
    source = open_source(settings, seed=1)
    assert source.comparisons() is None
    assert len(source.demonstrations()) == source.report().read == 50
    assert source.demonstrations() == open_source(settings, seed=1).demonstrations()
    assert source.demonstrations() != open_source(settings, seed=2).demonstrations()
    splits = source.evaluation_prompts()
    assert set(splits) == {"validation", "iid", "ood"}
    assert not set(source.prompts()) & {prompt for prompts in splits.values() for prompt in prompts}
    assert len(list(source.texts())) == 100
