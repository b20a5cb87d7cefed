"""Settings of the stage cache: its directory, and whether a run reads from it and writes to it."""

from __future__ import annotations

from typing import Literal

from rlhf_lightning.settings.section import Name, Section


class CacheSettings(Section):
    """The stage cache: a stage that another run has finished under the same key is not run again."""

    mode: Literal["on", "off", "refresh", "read_only"]
    directory: Name
