"""State of this process's W&B client before a run is opened: its server, credentials and environment."""

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
    """URL of the client's server. Silences the client's terminal output from here on."""
    with environment_restored(), agent_hidden():
        return wandb.setup(settings=wandb.Settings(silent=True, console="off")).settings.base_url


def has_credentials() -> bool:
    """True if the client finds an API key without a prompt: in the environment, its settings or a netrc file."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = server_url()
    hosts = [urlsplit(server).netloc]
    if server == wandb.Settings.model_fields["base_url"].default:
        # W&B's cloud has had several host names, and keys saved under this one are still valid.
        hosts.append(CLOUD_HOST)
    with environment_restored():
        known = wandb.setup().settings.api_key
    return bool(known) or any(_knows(path, host) for path in _netrc_files() for host in hosts)


def offline_by_environment() -> bool:
    """True if `WANDB_MODE` asks for offline mode; `disabled` counts as offline, so that the run is still recorded."""
    return os.environ.get("WANDB_MODE") in ("offline", "dryrun", "disabled")


@contextmanager
def environment_restored() -> Iterator[None]:
    """Undo the client's changes to the environment: jobs that this process starts must not inherit its session."""
    before = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("WANDB_") and name not in before]:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def command_redacted() -> Iterator[None]:
    """Redact secrets from the command line that the client records with every run."""
    before = sys.argv
    sys.argv = [before[0], *map(redact_override, before[1:])]
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def staging_in(directory: Path) -> Iterator[None]:
    """Have the client stage artifacts in the run, not in the home directory, unless the user set a directory."""
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
