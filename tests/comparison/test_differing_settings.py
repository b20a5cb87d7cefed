"""Which settings are columns, and how their values are written."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_lightning.comparison.differing_settings import (
    as_typed,
    comma_separated,
    differing_keys,
    key_named,
    means,
    means_the_same,
    named,
    values_as_typed,
)

NONE = {"seed": 1, "kl.coef": 0.1, "peft.kind": "none"}
LORA = {"seed": 1, "kl.coef": 0.1, "peft.kind": "lora", "peft.rank": 16, "peft.targets": None}


def test_only_keys_that_differ_are_columns_and_never_the_seed() -> None:
    configs = [NONE, {**NONE, "seed": 2}, {**NONE, "kl.coef": 0.5}]
    assert differing_keys(configs) == ["kl.coef"]
    assert differing_keys(configs[:2]) == []
    assert differing_keys([]) == []


@pytest.mark.parametrize(
    "key",
    [
        *("paths.run_dir", "logger.kind", "name", "tags", "cache.mode", "sweep.on_failure", "launcher.kind", "resume"),
        *("callbacks.progress_bar", "trainer.threads", "ppo.micro_batch_size", "allow_targets"),
    ],
)
def test_what_tells_no_experiments_apart_is_no_column(key: str) -> None:
    assert differing_keys([{key: "a"}, {key: "b"}]) == []


@pytest.mark.parametrize("key", ["trainer.precision", "names", "ppo.epochs", "measurement.seed"])
def test_what_does_is(key: str) -> None:
    assert differing_keys([{key: "a"}, {key: "b"}]) == [key]


def test_keys_that_come_with_an_option_are_no_difference_of_their_own() -> None:
    assert differing_keys([NONE, LORA]) == ["peft.kind"]
    assert differing_keys([NONE, LORA, {**LORA, "peft.rank": 8}]) == ["peft.kind", "peft.rank"]


def test_the_option_of_a_group_goes_by_the_groups_name() -> None:
    assert named("peft.kind") == "peft"
    assert named("pipeline.name") == "pipeline"
    assert named("peft.rank") == "peft.rank"
    assert [key_named(name, [NONE]) for name in ("peft", "peft.kind", "kl.coef", "peft.rank")] == [
        *("peft.kind", "peft.kind", "kl.coef"),
        None,
    ]


def test_a_key_that_an_option_lacks_and_one_that_a_version_lacks_look_different() -> None:
    old = {"seed": 1, "kl.coef": 0.1, "peft.kind": "lora", "peft.targets": None}
    configs = [NONE, LORA, old]
    assert differing_keys(configs) == ["peft.kind", "peft.rank"]
    assert values_as_typed(["peft.kind", "peft.rank"], configs, [[], [], []]) == [
        {"peft": "none", "peft.rank": "-"},
        {"peft": "lora", "peft.rank": "16"},
        {"peft": "lora", "peft.rank": "(missing)"},
    ]


def test_a_value_is_written_as_it_was_typed() -> None:
    configs: list[dict[str, Any]] = [{"ppo.learning_rate": 0.0001}, {"ppo.learning_rate": 0.0001}]
    told = [[], ["++ppo.learning_rate=1e-4"]]
    assert values_as_typed(["ppo.learning_rate"], configs, told) == [{"ppo.learning_rate": "1e-4"}] * 2


def test_an_override_that_did_not_prevail_is_not_how_it_was_typed() -> None:
    assert values_as_typed(["kl.coef"], [{"kl.coef": 0.5}], [["kl.coef=0.1"]]) == [{"kl.coef": "0.5"}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (3, "3"),
        (0.02, "0.02"),
        (1e-5, "1e-5"),
        (2.5e-07, "2.5e-7"),
        (1e20, "1e20"),
        (["q_proj", "v_proj"], "[q_proj,v_proj]"),
        ([], "[]"),
        ({"a": 1, "b": None}, "{a:1,b:null}"),
        ("mine/model", "mine/model"),
    ],
)
def test_values_look_like_overrides(value: Any, text: str) -> None:
    assert as_typed(value) == text


def test_a_text_means_a_value() -> None:
    assert means("1e-1", 0.1)
    assert means("[1, 2]", [1, 2])
    assert means("'mine'", "mine")
    assert means("NULL", None)
    assert not means("1", True)
    assert not means("one", 1)
    assert not means("[", None)


def test_texts_mean_the_same() -> None:
    assert means_the_same("0.10", "1e-1")
    assert means_the_same("None", "none")
    assert not means_the_same("0.1", "lora")


def test_commas_within_brackets_do_not_separate() -> None:
    assert comma_separated("a=[1,2], b={x:1,y:2},c=3") == ("a=[1,2]", "b={x:1,y:2}", "c=3")
