"""Which `_target_` a config may name: an allow-list of prefixes, matched at a dot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlhf_lightning.errors import Problem

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
