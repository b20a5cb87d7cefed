"""Instantiate the `_target_`s of a config with Hydra, restricted to an allow-list of prefixes.

A `_target_` is code that a config file chooses, and config files are passed around. Only names under trusted prefixes
are called, and only if the object was also defined there: `transformers.utils.os.system` was not. Hydra is
imported when an object is made, since commands that only read runs check names here too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import ConfigError, Problem, did_you_mean, similar

TRUSTED = ("rlhf_lightning", "torch.optim", "pytorch_lightning", "peft", "transformers")


def allowed_prefixes(extra: Sequence[str]) -> tuple[str, ...]:
    """The program's own prefixes and those that the user added (`allow_targets`)."""
    return (*TRUSTED, *(prefix.rstrip(".") for prefix in extra))


def is_allowed(name: str, allowed: Sequence[str]) -> bool:
    """True if a dotted name lies under an allowed prefix: `torch.optim.AdamW` does, `torch.optim_evil.Run` does not."""
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in allowed)


def target_nodes(config: Any, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a `_target_` in a plain config, however deep, with the dotted key of the mapping."""
    if isinstance(config, Mapping):
        if "_target_" in config:
            yield key, config
        for name, value in config.items():
            yield from target_nodes(value, f"{key}.{name}")
    elif isinstance(config, list | tuple):
        for place, value in enumerate(config):
            yield from target_nodes(value, f"{key}.{place}")


def refusals(config: Any, key: str, extra: Sequence[str]) -> list[Problem]:
    """The targets of a plain config that may not be named."""
    allowed = allowed_prefixes(extra)
    return [
        refusal(f"{place}._target_", str(node["_target_"]), allowed)
        for place, node in target_nodes(config, key)
        if not is_allowed(str(node["_target_"]), allowed)
    ]


def refusal(key: str, target: str, allowed: Sequence[str]) -> Problem:
    """The problem with a target that may not be named."""
    fix = f"if you trust it, add 'allow_targets=[{target.rpartition('.')[0]}]'"
    return Problem(key, f"{target} may not be named; what may lies under {', '.join(allowed)}", fix=fix)


def instantiate(config: Mapping[str, Any], *, allow_targets: Sequence[str], key: str = "config") -> Any:
    """The object that a plain config describes; `_partial_: true` gives a callable that takes the other arguments.

    Args:
        config: a mapping with a `_target_`, and others inside it where need be.
        allow_targets: prefixes that the user trusts beside the program's own.
        key: where the config stands, for error messages.

    Raises:
        ConfigError: if a target is not allowed, does not exist, or does not take its arguments.
    """
    import hydra.utils
    from hydra.errors import InstantiationException

    problems = refusals(config, key, allow_targets)
    if problems:
        raise ConfigError(problems)
    allowed = allowed_prefixes(allow_targets)
    for place, node in target_nodes(config, key):
        _check_node(place, node, allowed)
    try:
        return hydra.utils.instantiate(dict(config), _convert_="all")
    except InstantiationException as error:
        reason = error.__cause__ or error
        raise ConfigError([Problem(key, f"{config['_target_']} failed: {reason}")]) from error


def _check_node(key: str, node: Mapping[str, Any], allowed: Sequence[str]) -> None:
    import hydra.utils
    from hydra.errors import InstantiationException

    name = str(node["_target_"])
    try:
        target = hydra.utils.get_object(name)
    except (InstantiationException, ImportError, ValueError) as error:
        raise ConfigError([Problem(f"{key}._target_", f"there is no {name}", fix="check its spelling")]) from error
    home = f"{getattr(target, '__module__', '')}.{getattr(target, '__qualname__', '')}"
    if not callable(target) or not is_allowed(home, allowed):
        raise ConfigError([refusal(f"{key}._target_", f"{name} (which is {home})", allowed)])
    unknown = _unknown_arguments(target, [str(argument) for argument in node if not str(argument).startswith("_")])
    if unknown:
        raise ConfigError(
            [Problem(f"{key}.{wrong}", f"{name} takes no such argument", fix=fix) for wrong, fix in unknown]
        )


def _unknown_arguments(target: Callable[..., Any], names: Sequence[str]) -> list[tuple[str, str | None]]:
    """The arguments that a callable does not accept, each with a suggestion."""
    parameters = inspect.signature(target).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return []
    known = [parameter.name for parameter in parameters]
    return [(name, did_you_mean(similar(name, known))) for name in names if name not in known]
