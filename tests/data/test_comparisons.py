"""Comparisons on disk, as pairs, and what is right without reading them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_lightning.data.comparisons import Comparisons, trivial_baselines
from rlhf_lightning.data.settings import FileData
from rlhf_lightning.data.sources import open_source
from rlhf_lightning.errors import DataError
from rlhf_lightning.records import Message, Preference, Prompt, Ranking

CHAT = Prompt((Message("system", "é"), Message("user", "why?\nso")))
RANKINGS = [Ranking(Prompt(f"question {number}"), ("a", "b", ""), (1, 2, 2)) for number in range(20)]
PREFERENCES = [Preference(CHAT, "a", "\u2028b", margin=0.5, probability=0.75), Preference(Prompt("p"), "", "b")]


def test_saved_comparisons_are_read_back_and_read_as_files(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    comparisons = Comparisons.split([*RANKINGS, *PREFERENCES], 0.5)
    assert len(comparisons.train) + len(comparisons.held_out) == 22
    comparisons.save(tmp_path / "comparisons")
    assert Comparisons.load(tmp_path / "comparisons") == comparisons
    # The split is a function of the prompts, so the same fraction finds the same sides.
    read = open_source(make_file_data(rankings=tmp_path / "comparisons"), seed=0).comparisons()
    assert read is not None
    assert set(read.train) == set(comparisons.train)
    assert set(read.held_out) == set(comparisons.held_out)


def test_an_incomplete_directory(tmp_path: Path) -> None:
    Comparisons(tuple(PREFERENCES), ()).save(tmp_path)
    assert Comparisons.load(tmp_path) == Comparisons(tuple(PREFERENCES), ())
    (tmp_path / "held_out.jsonl").unlink()
    with pytest.raises(DataError, match="does not exist"):
        Comparisons.load(tmp_path)


def test_a_soft_label_out_of_its_range_is_refused_with_its_place(
    tmp_path: Path, make_file_data: Callable[..., FileData]
) -> None:
    Comparisons((PREFERENCES[1], PREFERENCES[0]), ()).save(tmp_path)
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("0.75", "0.25"), encoding="utf-8")
    files = make_file_data(preferences=path)
    for read in (lambda: Comparisons.load(tmp_path), lambda: open_source(files, seed=0)):
        with pytest.raises(DataError, match=r"must be at least 0\.5 and at most 1; got float 0\.25") as caught:
            read()
        assert caught.value.where == f"{path}:2, field 'probability'"


def test_rankings_become_pairs_and_preferences_stay() -> None:
    comparisons = Comparisons((RANKINGS[0], PREFERENCES[0]), (PREFERENCES[1],))
    train, held_out = comparisons.preferences("all")
    prompt = RANKINGS[0].prompt
    assert train == [Preference(prompt, "a", "b"), Preference(prompt, "a", ""), PREFERENCES[0]]
    assert held_out == [PREFERENCES[1]]


def test_trivial_baselines() -> None:
    # Longer, longer, longer, shorter, and four times as long: the longer one is right in 3 + 4/2 of 8.
    pairs = [("abc", "a"), ("ab", ""), ("abc", "ab"), ("a", "abc"), *[("ab", "cd")] * 4]
    preferences = [Preference(CHAT, chosen, rejected) for chosen, rejected in pairs]
    assert trivial_baselines(preferences) == {"longer": 0.625, "shorter": 0.375}
    assert all(math.isnan(value) for value in trivial_baselines([]).values())
