"""The allow-list before `_target_`: what passes, what does not, and by which tricks it does not."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest

from rlhf_lightning.errors import ConfigError, Problem
from rlhf_lightning.stages.targets import allowed_prefixes, instantiate, is_allowed


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A library `shop` with a class of its own and a module that it merely imported."""

    class Apple:
        def __init__(self, weight: float, color: str = "red", inside: Any = None) -> None:
            self.weight, self.color, self.inside = weight, color, inside

    module = types.ModuleType("shop")
    Apple.__module__, Apple.__qualname__ = "shop", "Apple"
    module.Apple = Apple  # type: ignore[attr-defined]
    module.os = sys.modules["os"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shop", module)
    return module


def refused(config: dict[str, Any], *allow: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        instantiate(config, allow_targets=list(allow), key="optimizer")
    (problem,) = caught.value.problems
    return problem


def test_prefixes_match_at_a_dot() -> None:
    allowed = allowed_prefixes(["shop.fruit."])
    assert is_allowed("torch.optim.AdamW", allowed)
    assert is_allowed("shop.fruit.Apple", allowed)
    assert not is_allowed("torch.optim_evil.Run", allowed)
    assert not is_allowed("torch.load", allowed)
    assert not is_allowed("shop.Apple", allowed)


def test_a_trusted_target_is_built(library: types.ModuleType) -> None:
    apple = instantiate({"_target_": "shop.Apple", "weight": 2.0}, allow_targets=["shop"])
    assert isinstance(apple, library.Apple)
    assert (apple.weight, apple.color) == (2.0, "red")


def test_partial_waits_for_the_rest(library: types.ModuleType) -> None:
    make = instantiate({"_target_": "shop.Apple", "_partial_": True, "color": "green"}, allow_targets=["shop"])
    apple = make(3.0)
    assert isinstance(apple, library.Apple)
    assert (apple.weight, apple.color) == (3.0, "green")


@pytest.mark.usefixtures("library")
def test_an_unknown_target_is_refused_and_the_way_to_trust_it_named() -> None:
    problem = refused({"_target_": "shop.Apple", "weight": 1.0})
    assert problem.key == "optimizer._target_"
    assert problem.fix == "if you trust it, add 'allow_targets=[shop]'"


@pytest.mark.usefixtures("library")
def test_a_nested_target_is_refused() -> None:
    inside = [{"deep": {"_target_": "os.system", "command": "true"}}]
    problem = refused({"_target_": "shop.Apple", "weight": 1.0, "inside": inside}, "shop")
    assert problem.key == "optimizer.inside.0.deep._target_"


@pytest.mark.usefixtures("library")
def test_what_a_trusted_library_merely_imported_is_refused() -> None:
    problem = refused({"_target_": "shop.os.system", "command": "true"}, "shop")
    assert "posix.system" in problem.what


@pytest.mark.usefixtures("library")
def test_a_target_that_does_not_exist() -> None:
    assert refused({"_target_": "shop.Pear"}, "shop").what == "there is no shop.Pear"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("partial", [True, False])
def test_an_argument_that_the_target_does_not_take(partial: bool) -> None:
    problem = refused({"_target_": "shop.Apple", "_partial_": partial, "weight": 1.0, "colour": "red"}, "shop")
    assert (problem.key, problem.fix) == ("optimizer.colour", "did you mean color?")


@pytest.mark.usefixtures("library")
def test_a_target_that_fails_says_why() -> None:
    problem = refused({"_target_": "shop.Apple"}, "shop")
    assert "weight" in problem.what


def test_the_shipped_optimizer_is_allowed() -> None:
    torch = pytest.importorskip("torch")
    config = {"_target_": "torch.optim.AdamW", "_partial_": True, "betas": [0.9, 0.999], "eps": 1e-5}
    optimizer = instantiate(config, allow_targets=[])([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert (optimizer.defaults["lr"], optimizer.defaults["eps"]) == (0.5, 1e-5)
