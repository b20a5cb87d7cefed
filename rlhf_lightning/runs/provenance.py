"""Provenance of a run: its code and inputs, the content of `provenance.json`, changes since, and `reproduce.sh`."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_lightning import __version__
from rlhf_lightning.data.settings import HubData
from rlhf_lightning.feedback.settings import HubJudge
from rlhf_lightning.models.settings import HubModel
from rlhf_lightning.runs import identity
from rlhf_lightning.runs.environment_checks import artifacts_named
from rlhf_lightning.runs.machine import arithmetic, deciding_packages, environment, installed, machine
from rlhf_lightning.stages.run_directory import CHANGES, REPRODUCE, RunDirectory
from rlhf_lightning.stages.run_settings import RunSettings
from rlhf_lightning.tracking.redaction import redact_text

PACKAGE = Path(__file__).resolve().parents[1]

CONF = "conf"
"""The folder of configs, beside the package in a checkout and inside it in a wheel."""

LONGEST_DIFF = 1_000_000
"""Characters of uncommitted changes that are kept."""

PLAIN_DIFF = (
    *("diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative"),
    *("--src-prefix=a/", "--dst-prefix=b/"),
)
"""A diff that `git apply` reads, whatever the user's git is told to show."""


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
    diff = redact_text(whole[:LONGEST_DIFF])
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


def hub_commits(settings: RunSettings) -> dict[str, str | None]:
    """The commit of each hub model and dataset in this machine's cache; None if it is not cached."""
    asked = {name: "main" for name in _names(settings) if not Path(name).exists()}
    commits = {name: _cached_commit("models", name, revision) for name, revision in asked.items()}
    data = settings.data
    for model in (settings.judge, settings.model):
        if isinstance(model, HubModel | HubJudge) and model.name_or_path in commits:
            commits[model.name_or_path] = _cached_commit("models", model.name_or_path, model.revision or "main")
    if isinstance(data, HubData) and not Path(data.name).exists():
        commits[f"datasets/{data.name}"] = _cached_commit("datasets", data.name, "main")
    return commits


def _names(settings: RunSettings) -> Iterator[str]:
    """Names of models and artifacts from outside the run."""
    for key, name in artifacts_named(settings):
        if key != "data.name" and name not in (*settings.sections_of_stages, "base"):
            yield name


def _cached_commit(kind: str, name: str, revision: str) -> str | None:
    """The cached commit of a branch or tag; for a dataset, the one fetched last."""
    from huggingface_hub import constants  # imported here, since most runs do not need it

    cache = Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"
    reference = cache / "refs" / revision
    if reference.is_file():
        return reference.read_text(encoding="utf-8").strip()
    if (cache / "snapshots" / revision).is_dir():
        return revision
    fetched = sorted((cache / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
    return fetched[-1].name if fetched and kind == "datasets" else None


Origin = Mapping[str, Any]


def gather_provenance(settings: RunSettings, overrides: Sequence[str]) -> dict[str, Any]:
    """The provenance of a run, as plain containers. Paths are relative to the working directory."""
    packages = installed()
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [redact_text(word) for word in sys.argv],
        "interpreter": sys.executable,
        "directory": str(Path.cwd()),
        "overrides": [redact_text(override) for override in overrides],
        "config_sha256": config_hash(settings),
        "rlhf_lightning": __version__,
        "git": git_state(PACKAGE),
        "packages": deciding_packages(packages),
        "installed": packages,
        "machine": machine(),
        "environment": environment(),
        "stages": identity.StageKeys(settings, settings.trainer.accelerator, None).record(),
        "hub": hub_commits(settings),
    }


def config_hash(settings: RunSettings) -> str:
    """SHA-256 of the settings without the output paths: the same run in another directory has the same hash."""
    content = settings.model_dump(mode="json", exclude={"paths", "cache"})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def completed(origin: Origin, settings: RunSettings) -> dict[str, Any]:
    """A run's provenance with what is known only at its end: torch's arithmetic settings, and the hub's commits."""
    asked = hub_commits(settings)
    return {**origin, "arithmetic": arithmetic(), "hub": {**asked, **_known(origin["hub"])}}


def changes_since(first: Origin, now: Origin) -> list[str]:
    """Descriptions of all changes since a run was started that may alter a result."""
    return [*changes_of_origin(first, now), *changes_of_machine(first, now), *changes_of_environment(first, now)]


def changes_of_origin(first: Origin, now: Origin) -> list[str]:
    """Descriptions of changes that decide a result since a run was started: code, packages, data, models.

    Args:
        first: of the run; an older version of the program may have recorded less.
        now: of this process.
    """
    changes = _different(first["packages"], now["packages"])
    if first["machine"]["python"] != now["machine"]["python"]:
        changes.append(f"Python {first['machine']['python']} -> {now['machine']['python']}")
    changes += identity.changes(first.get("stages", {}), now["stages"])
    # What the hub's cache holds is known only after the first use.
    recorded, cached = _known(first.get("hub", {})), _known(now["hub"])
    both = recorded.keys() & cached.keys()
    return changes + _different({name: recorded[name] for name in both}, {name: cached[name] for name in both})


def changes_of_machine(first: Origin, now: Origin) -> list[str]:
    """Descriptions of changes since a run was started that may alter the last bits of a result."""
    before, after = ({name: origin["machine"].get(name) for name in ("cpu", "gpus")} for origin in (first, now))
    return _different(before, after)


def changes_of_environment(first: Origin, now: Origin) -> list[str]:
    """Environment variables that may alter the last bits and have changed since a run was started."""
    return _different(first.get("environment", {}), now["environment"])


def _different(first: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{name} {first.get(name) or 'none'} -> {now.get(name) or 'none'}"
        for name in {**first, **now}
        if first.get(name) != now.get(name)
    ]


def _known(commits: Mapping[str, str | None]) -> dict[str, str]:
    return {name: commit for name, commit in commits.items() if commit is not None}


FROM_A_COMMIT = """\
repository=${{RLHF_REPOSITORY:-{repository}}}
commit={commit}

if ! git -C "$repository" cat-file -e "$commit^{{commit}}"; then
    echo "Commit $commit is not in $repository: set RLHF_REPOSITORY to a clone that has it," >&2
    echo "or try the installed package: rlhf rerun $run" >&2
    exit 2
fi
code=$(mktemp -d)
trap 'git -C "$repository" worktree remove --force "$code"' EXIT
git -C "$repository" worktree add --quiet --detach "$code" "$commit"
{changes}export PYTHONPATH=$code${{PYTHONPATH:+:$PYTHONPATH}}
"""

WITH_CHANGES = """\
git -C "$code" apply --whitespace=nowarn "$run/{patch}" # what was not committed
"""

INSTALLED = """\
# {reason}: the installed package is used, if it has the same code.
"""

SCRIPT = """\
#!/usr/bin/env bash
# Does this run again with the code that it ran with, in a new directory, and compares the figures.
#   bash reproduce.sh [--to DIR] [--force] [logger=wandb ...]
# Exit code: 0 the same figures, 3 other figures, 2 refused (versions or data differ), 1 it failed.
set -euo pipefail

run=$(cd -- "$(dirname -- "${{BASH_SOURCE[0]}}")" && pwd)
python=${{RLHF_PYTHON:-{python}}}
if ! command -v -- "$python" > /dev/null; then
    echo "There is no $python: set RLHF_PYTHON to a Python that has the packages of provenance.json." >&2
    exit 2
fi

{code}
export PYTHONSAFEPATH=1 # or a package in the working directory would come first
"$python" -m rlhf_lightning rerun "$run" "$@"
"""


def write_script(run: RunDirectory, origin: Mapping[str, Any]) -> None:
    """Writes `reproduce.sh`, and `changes.patch` where the checkout differed from its commit.

    Args:
        run: the run, which is starting.
        origin: its provenance.

    Raises:
        RunDirectoryError: if they cannot be written.
    """
    git = origin["git"]
    if git is not None and git["diff_exact"] and git["diff"]:
        run.write_text(CHANGES, git["diff"])
    run.write_text(REPRODUCE, SCRIPT.format(python=shlex.quote(origin["interpreter"]), code=_code(git)))


def _code(git: Mapping[str, Any] | None) -> str:
    if git is None:
        return INSTALLED.format(reason="The run came from no checkout")
    if not git["diff_exact"]:
        return INSTALLED.format(reason="What was not committed was not kept whole (too long, or with a secret in it)")
    changes = WITH_CHANGES.format(patch=CHANGES) if git["diff"] else ""
    return FROM_A_COMMIT.format(repository=shlex.quote(git["repository"]), commit=git["commit"], changes=changes)
