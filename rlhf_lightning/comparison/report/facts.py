"""Provenance of a run as pairs of name and text: the content of its provenance.json."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_lightning.comparison.records import Run

SHOWN_ELSEWHERE = ("started", "overrides")
REPRODUCE = "reproduce.sh"


def facts(run: Run) -> dict[str, str]:
    """Flat: `{"git.commit": "fa16e6...", "packages.torch": "2.13.0"}`, and how to run it again."""
    found = dict(_flat(run.provenance))
    script = run.directory / REPRODUCE
    if script.is_file():
        found["run it again"] = f"bash {shlex.quote(str(script))}"
    return {name: text for name, text in found.items() if name not in SHOWN_ELSEWHERE}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(name, value)


def _text(name: str, value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return "none"
    if name == "command" and isinstance(value, list):
        return shlex.join(map(str, value))
    if name == "diff":
        return f"{len(str(value).splitlines())} lines, in provenance.json"
    if name.endswith("_bytes") and isinstance(value, int):
        return f"{value / 2**30:.1f} GiB"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
