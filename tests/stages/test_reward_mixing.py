"""What a reward model learns from where comparisons of two sources are mixed, and what it is measured on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_lightning.data.comparisons import Comparison, Comparisons
from rlhf_lightning.errors import ArtifactError, DataError
from rlhf_lightning.records import Preference, Prompt, Ranking
from rlhf_lightning.stages.reward_model import _pairs
from rlhf_lightning.stages.run_settings import RunSettings

Mixed = tuple[list[Preference], list[Preference], int]


def pairs(of: str, numbers: range, probability: float | None = None) -> list[Preference]:
    """A pair for each number, whose prompts are `of0`, `of1`, ..."""
    return [Preference(Prompt(f"{of}{number}"), "a", "b", probability=probability) for number in numbers]


@pytest.fixture
def mixed(tmp_path: Path, composed: Callable[..., RunSettings]) -> Callable[..., Mixed]:
    """What the stage takes of comparisons by a judge, with human ones mixed in."""

    def take(
        own: tuple[Sequence[Comparison], Sequence[Comparison]],
        others: tuple[Sequence[Comparison], Sequence[Comparison]] | None,
        ratio: float = 0.0,
        *overrides: str,
        seed: int = 1,
    ) -> Mixed:
        Comparisons(tuple(own[0]), tuple(own[1])).save(tmp_path / "own")
        chosen = [f"reward_model.comparisons_from={tmp_path / 'own'}", *overrides]
        if others is not None:
            Comparisons(tuple(others[0]), tuple(others[1])).save(tmp_path / "others")
            chosen += [f"reward_model.mix_from={tmp_path / 'others'}", f"reward_model.mix_ratio={ratio}"]
        settings = composed(*chosen)
        context: Any = SimpleNamespace(
            name="reward_model",
            settings=settings,
            section=lambda _: settings.section("reward_model"),
            inputs=SimpleNamespace(records_of=Path),
            seed=seed,
        )
        return _pairs(context)

    return take


def test_without_a_second_source_everything_is_as_it_was(mixed: Callable[..., Mixed]) -> None:
    own = (pairs("own", range(4), 0.75), pairs("held", range(2)))
    assert mixed(own, None) == (*own, 0)


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 5), (0.74, 7), (0.01, 0), (1.0, 10), (1.2, 12)])
def test_so_many_pairs_are_mixed_in_per_pair(mixed: Callable[..., Mixed], ratio: float, count: int) -> None:
    own, others = pairs("own", range(10), 0.75), pairs("other", range(30))
    train, _, taken = mixed((own, []), (others, []), ratio)
    assert taken == count
    assert train[:10] == own, "all of them, with their soft labels"
    assert len(train) == 10 + count
    assert set(train[10:]) <= set(others)
    assert len(set(train[10:])) == count, "no pair comes twice while another has not come"


def test_each_pair_is_taken_once_before_any_is_taken_again(mixed: Callable[..., Mixed]) -> None:
    others = pairs("other", range(4))
    train, _, taken = mixed((pairs("own", range(10)), []), (others, []), 1.0)
    assert taken == 10
    for lap in (train[10:14], train[14:18]):
        assert set(lap) == set(others)
    # 4 + 4 + 2: two of them a third time.
    assert sorted(Counter(train[10:]).values()) == [2, 2, 3, 3]


def test_which_pairs_are_taken_depends_on_the_seed_alone(mixed: Callable[..., Mixed]) -> None:
    sources = ((pairs("own", range(10)), []), (pairs("other", range(30)), []))
    drawn = [mixed(*sources, 1.0, seed=seed)[0][10:] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert set(drawn[0]) != set(drawn[2])
    assert drawn[0] != sources[1][0][:10], "at random, and not from the beginning"


def test_both_sources_are_measured_on_but_for_prompts_that_are_trained_on(mixed: Callable[..., Mixed]) -> None:
    own = (pairs("own", range(4)), [*pairs("own_held", range(2)), *pairs("shared", range(1))])
    others = ([*pairs("other", range(3)), *pairs("shared", range(1))], [*pairs("other_held", range(2)), own[0][0]])
    train, held_out, _ = mixed(own, others, 1.0)
    # All four others are taken, `shared0` among them; `own0` is trained on in the first source.
    assert set(train) == {*own[0], *others[0]}
    assert held_out == [*pairs("own_held", range(2)), *pairs("other_held", range(2))]


def test_held_out_pairs_never_share_a_prompt_with_trained_on_ones(mixed: Callable[..., Mixed]) -> None:
    """Of two sources that hold out other prompts of the same ones; a pair that was not drawn costs no held-out one."""
    prompts = pairs("prompt", range(20))
    own = (prompts[:12], prompts[12:])
    others = (prompts[8:], prompts[:8])
    kept = []
    for seed in range(8):
        train, held_out, _ = mixed(own, others, 0.25, seed=seed)
        trained_on = {pair.prompt for pair in train}
        assert not trained_on & {pair.prompt for pair in held_out}
        assert [pair for pair in (*own[1], *others[1]) if pair.prompt not in trained_on] == held_out
        kept.append(len(held_out))
    # Three of others' twelve are drawn. Up to three of own's eight held-out prompts are among them, and all eight of
    # the others' are trained on.
    assert set(kept) <= {5, 6, 7, 8}
    assert min(kept) < 8


def test_rankings_of_both_sources_become_pairs_in_the_same_way(mixed: Callable[..., Mixed]) -> None:
    own, other = (Ranking(Prompt(name), ("a", "b", "c"), (1, 2, 3)) for name in ("own", "other"))
    every, _, taken = mixed(([own], []), ([other], []), 1.0)
    assert (len(every), taken) == (6, 3), "a over b, a over c, b over c"
    neighbors, _, taken = mixed(([own], []), ([other], []), 1.0, "data.pairing=adjacent")
    assert (len(neighbors), taken) == (4, 2), "a over b, b over c"


def test_nothing_to_mix_in_is_an_error(mixed: Callable[..., Mixed], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no comparisons to mix in") as caught:
        mixed((pairs("own", range(2)), []), ([], pairs("held", range(2))), 1.0)
    assert caught.value.where == f"reward_model.mix_from={tmp_path / 'others'}"


def test_a_second_source_that_is_none_is_named_by_its_key(mixed: Callable[..., Mixed], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    chosen = (f"reward_model.mix_from={tmp_path / 'empty'}", "reward_model.mix_ratio=1.0")
    with pytest.raises(ArtifactError, match="There are no comparisons there") as caught:
        mixed((pairs("own", range(2)), []), None, 0.0, *chosen)
    assert caught.value.where == f"reward_model.mix_from={tmp_path / 'empty'}"
