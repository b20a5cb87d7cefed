"""Joins the page's template, style and scripts with the data of a comparison into one file."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlhf_lightning.comparison.records import Comparison
from rlhf_lightning.comparison.report.content import content

SCRIPTS = (
    "dom",
    "format",
    "theme",
    "scales",
    "series",
    "seeds",
    "inspector",
    "chart",
    "table",
    "curves",
    "frontier",
    "parallel",
    "samples",
    "provenance",
    "main",
)
"""Scripts in the order in which they are joined into one, with a scope of its own."""


def write_report(comparison: Comparison, path: Path) -> None:
    """Write a comparison as one self-contained HTML file; its folder is made if need be.

    The file loads nothing, and its content security policy forbids it to: the hashes of its own style and script are
    all that may run. What runs and models say travels as JSON, and the script inserts it as text.
    """
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(content(comparison, made)), encoding="utf-8")


def page(data: dict[str, Any]) -> str:
    """The whole page. Everything that comes from runs is in the JSON; the rest is ours."""
    style, script = _part("style.css"), _script()
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": "Comparison of runs",
        "style": style,
        "script": script,
        "data": as_safe_json(data),
    }
    head, *rest = _part("template.html").split("{{")
    return head + "".join(parts[name] + after for name, after in (piece.split("}}", 1) for piece in rest))


def as_safe_json(data: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in: plain ASCII, and no `<`."""
    return json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _script() -> str:
    joined = "\n".join(_part(f"{name}.js") for name in SCRIPTS)
    return f'(() => {{\n"use strict";\n{joined}\n}})();'


@cache
def _part(name: str) -> str:
    return files(__package__).joinpath("page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
