"""The README files of the repository: their commands, code blocks, tables, links and anchors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _files() -> Iterator[Path]:
    yield ROOT / "README.md"
    for folder in ("conf", "rlhf_lightning", "scripts"):
        yield from sorted((ROOT / folder).rglob("README.md"))


README_FILES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in _files()}
"""Texts by path from the root, README.md first."""


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of a language."""
    return [body for text in README_FILES.values() for named, body in FENCED.findall(text) if named == language]


def prose(text: str) -> str:
    """A text without its fenced blocks."""
    return FENCED.sub("", text)


def commands(script: str) -> list[tuple[str, ...]]:
    """Words of each command of a shell script, without comments; a continued line is one command."""
    lines = script.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := tuple(shlex.split(line, comments=True)))]


def typed_commands() -> dict[tuple[str, ...], str]:
    """Commands of all bash blocks, each with the first file that has it."""
    found: dict[tuple[str, ...], str] = {}
    for file, text in README_FILES.items():
        for language, body in FENCED.findall(text):
            for words in commands(body) if language == "bash" else ():
                found.setdefault(words, file)
    return found


def inline_commands(beginning: str) -> dict[tuple[str, ...], str]:
    """Commands in backticks that begin with some words, each with the first file that has it."""
    found: dict[tuple[str, ...], str] = {}
    for file, text in README_FILES.items():
        for command in re.findall(rf"`({beginning}\b[^`]*)`", prose(text)):
            found.setdefault(tuple(shlex.split(" ".join(command.split()))), file)
    return found


def section(heading: str) -> str:
    """Text under a heading, up to the next one of any level."""
    (found,) = (
        parts[1] for text in README_FILES.values() if len(parts := re.split(rf"^#+ {heading}$", text, flags=re.M)) > 1
    )
    return re.split(r"^#+ ", found, maxsplit=1, flags=re.MULTILINE)[0]


def table(heading: str) -> list[list[str]]:
    """Cells of the first table under a heading, without its two header rows."""
    rows = re.search(r"(?:^\|.*\n)+", section(heading), flags=re.MULTILINE)
    assert rows is not None, heading
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.group().splitlines()[2:]]


def codes(cell: str) -> list[str]:
    """Texts in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def links(text: str) -> list[str]:
    """Targets of the links that stay within the repository."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", prose(text)) if not target.startswith("https://")]


def anchors(text: str) -> list[str]:
    """Anchors that GitHub gives to the headings of a text, in order."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
