"""Suggestions for mistyped keys and options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.schema import Schema

ALIKE = 0.72
"""Least similarity (0 to 1, `difflib`) at which a name is suggested."""

RENAMED = {
    "reward_model.pairing": "data.pairing",
    "evaluate.batch_size": "measurement.batch_size",
    "evaluate.bootstrap_samples": "measurement.bootstrap_samples",
    "evaluate.seed": "measurement.seed",
}
"""Keys of earlier versions, and what they are called now."""


def similar(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """The candidates most similar to a name, best first."""
    return difflib.get_close_matches(name, list(candidates), n=limit, cutoff=ALIKE)


def did_you_mean(suggestions: Iterable[str]) -> str | None:
    """`did you mean a or b?`; None without suggestions."""
    unique = list(dict.fromkeys(suggestions))
    return f"did you mean {' or '.join(unique)}?" if unique else None


def keys_like(schema: Schema, key: str) -> list[str]:
    """Existing keys to suggest for a wrong one: its new name, similar spelling, or the same last name elsewhere."""
    if key in RENAMED:
        return [RENAMED[key]]
    leaf = key.rpartition(".")[2]
    namesakes = [
        path for path in schema.key_paths() if "." in path and path.rpartition(".")[2] == leaf and leaf != "kind"
    ]
    return list(dict.fromkeys([*similar(key, schema.key_paths()), *namesakes, *_same_section(schema, key)]))[:4]


def options_like(tree: ConfigTree, group: str, option: str) -> list[str]:
    """Existing choices to suggest for a wrong one, as a user writes them: `kl=fixed`, `experiment=tiny`."""
    alike = [f"{group}={name}" for name in similar(option, tree.options(group.partition("@")[0]))]
    elsewhere = [f"{other}={option}" for other in tree.groups() if "@" not in other and option in tree.options(other)]
    return [*alike, *elsewhere]


def _same_section(schema: Schema, key: str) -> list[str]:
    """Keys of the same section with a similar last name, which comparing whole dotted keys may miss."""
    section, _, leaf = key.rpartition(".")
    if not section:
        return []
    names = [path.rpartition(".")[2] for path in schema.key_paths() if path.rpartition(".")[0] == section]
    return [f"{section}.{name}" for name in similar(leaf, names)]
