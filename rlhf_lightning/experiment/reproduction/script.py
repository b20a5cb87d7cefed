"""`reproduce.sh` in a run directory: finds the code that the run executed, and calls `rlhf rerun`.

It contains nothing that the user typed: the config is read from the run directory, wherever that is moved to.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from rlhf_lightning.experiment.run_directory import CHANGES, REPRODUCE, RunDirectory

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
