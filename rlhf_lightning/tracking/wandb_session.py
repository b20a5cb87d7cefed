"""What the W&B client of this process knows before a run is opened: its server and whether it has a key."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import wandb

from rlhf_lightning.tracking.redaction import redact_override
from rlhf_lightning.tracking.wandb_agent import agent_hidden

CLOUD_HOST = "api.wandb.ai"


def server_url() -> str:
    """The server the client would speak to. The client is told to say nothing on the terminal from here on."""
    with environment_restored(), agent_hidden():
        return wandb.setup(settings=wandb.Settings(silent=True, console="off")).settings.base_url


def has_credentials() -> bool:
    """Whether the client would find an API key without asking: in the environment, its settings or a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = server_url()
    hosts = [urlsplit(server).netloc]
    if server == wandb.Settings.model_fields["base_url"].default:
        # W&B's own cloud has gone by more than one name, and keys that were saved under this one still hold.
        hosts.append(CLOUD_HOST)
    with environment_restored():
        known = wandb.setup().settings.api_key
    return bool(known) or any(_knows(path, host) for path in _netrc_files() for host in hosts)


def offline_by_environment() -> bool:
    """Whether `WANDB_MODE` says so; a disabled client counts as offline, so that the run keeps its record."""
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")


@contextmanager
def environment_restored() -> Iterator[None]:
    """Undo what the client does to the environment: jobs that this process starts must not inherit its session."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("WANDB_") and name not in before]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def command_redacted() -> Iterator[None]:
    """Keep secrets that were typed on the command line from the client, which notes it with every run."""
    before = sys.argv
    sys.argv = [before[0], *map(redact_override, before[1:])]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def staging_in(directory: Path) -> Iterator[None]:
    """Have the client keep copies of artifacts with the run, unless the user chose a place, and not in their home."""
    with environment_restored():
        os.environ.setdefault("WANDB_DATA_DIR", str(directory))
        yield


def _netrc_files() -> list[Path]:
    named = os.environ.get("NETRC")
    return [Path(path).expanduser() for path in ([named] if named else ["~/.netrc", "~/_netrc"])]


def _knows(path: Path, host: str) -> bool:
    try:
        entry = netrc.netrc(path).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return False
    return entry is not None and bool(entry[2])
