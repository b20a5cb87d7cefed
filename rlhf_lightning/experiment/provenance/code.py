"""The code that a run executes: the package's content, and the commit and changes of the checkout it runs from."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlhf_lightning.experiment.provenance.hashes import combined_hash, visible_files
from rlhf_lightning.experiment.provenance.secrets import redact

PACKAGE = Path(__file__).resolve().parents[2]

CONF = "conf"
"""The folder of configs, beside the package in a checkout and inside it in a wheel."""

LONGEST_DIFF = 1_000_000
"""Characters of uncommitted changes that are kept."""

PLAIN_DIFF = (
    *("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)
"""A diff that `git apply` reads, whatever the user's git is told to show."""


def code_hash(package: Path) -> str:
    """SHA-256 of a package's files, its base model included.

    Configs are left out, since a run keeps its own, resolved; so is documentation, which a wheel does not have.
    """
    files = [path for path in visible_files(package) if path.relative_to(package).parts[0] != CONF]
    files = [path for path in files if path.suffix != ".md"]
    return combined_hash(package, files)


def git_state(package: Path) -> dict[str, Any] | None:
    """The checkout that a package runs from; None when it runs from none.

    Returns:
        repository: its git directory, which all worktrees share.
        commit, branch: what is checked out.
        dirty: whether anything differs from the commit.
        diff: what differs in the package and the configs, files that git does not track included.
        diff_exact: whether `git apply` makes the same files of it; not so where it was too long, or lost a secret.
        untracked: files of the package and the configs that git does not track.
    """
    root = package.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    places = (package.name, CONF)
    untracked = _text(_git(root, "ls-files", "-z", "--others", "--exclude-standard", "--", *places)).split("\0")[:-1]
    raw = _changes(root, places, untracked)
    whole = raw.decode(errors="replace")
    diff = redact(whole[:LONGEST_DIFF])
    return {
        "repository": _text(_git(root, "rev-parse", "--path-format=absolute", "--git-common-dir")).strip(),
        "commit": _text(commit).strip(),
        "branch": _text(_git(root, "rev-parse", "--abbrev-ref", "HEAD")).strip(),
        "dirty": bool(_git(root, "status", "--porcelain")),
        "diff": diff,
        "diff_exact": diff.encode() == raw,
        "untracked": untracked,
    }


def _changes(root: Path, places: Iterable[str], untracked: Iterable[str]) -> bytes:
    parts = [_git(root, *PLAIN_DIFF, "HEAD", "--", *places) or b""]
    for name in untracked:
        # Compared with an empty file, which differs: git exits with 1.
        parts.append(_git(root, *PLAIN_DIFF, "--no-index", "--", "/dev/null", name, codes=(0, 1)) or b"")
    return b"".join(parts)


def _git(root: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> bytes | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    return done.stdout if done.returncode in codes else None


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")
