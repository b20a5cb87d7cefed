"""What a mistyped key or option was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rlhf_lightning.experiment.config.compose import ConfigTree
from rlhf_lightning.experiment.config.schema import key_paths

ALIKE = 0.72
"""How alike (0 to 1, `difflib`) two names must be before one is offered for the other."""


def similar(name: str, candidates: Iterable[str], limit: int = 3) -> list[str]:
    """The candidates most like a name, best first."""
    return difflib.get_close_matches(name, list(candidates), n=limit, cutoff=ALIKE)


def did_you_mean(suggestions: Iterable[str]) -> str | None:
    """`did you mean a or b?`; None without suggestions."""
    unique = list(dict.fromkeys(suggestions))
    return f"did you mean {' or '.join(unique)}?" if unique else None


def keys_like(key: str) -> list[str]:
    """Real keys that a wrong one may have meant: spelled alike, or the same last name in another section."""
    leaf = key.rpartition(".")[2]
    namesakes = [path for path in key_paths() if "." in path and path.rpartition(".")[2] == leaf and leaf != "kind"]
    return list(dict.fromkeys([*similar(key, key_paths()), *namesakes, *_same_section(key)]))[:4]


def options_like(tree: ConfigTree, group: str, option: str) -> list[str]:
    """Real choices that a wrong one may have meant, as a user writes them: `kl=fixed`, `experiment=tiny`."""
    alike = [f"{group}={name}" for name in similar(option, tree.options(group.partition("@")[0]))]
    elsewhere = [f"{other}={option}" for other in tree.groups() if "@" not in other and option in tree.options(other)]
    return [*alike, *elsewhere]


def _same_section(key: str) -> list[str]:
    """Keys of the same section whose last name is alike: a short name differs more from a long path than it seems."""
    section, _, leaf = key.rpartition(".")
    if not section:
        return []
    names = [path.rpartition(".")[2] for path in key_paths() if path.rpartition(".")[0] == section]
    return [f"{section}.{name}" for name in similar(leaf, names)]
