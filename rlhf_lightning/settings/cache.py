"""Where finished stages are kept for other runs, and what a run may do with them."""

from __future__ import annotations

from typing import Literal

from rlhf_lightning.settings.section import Name, Section


class CacheSettings(Section):
    """The stage cache: a stage that some run has finished with the same key is not run again."""

    mode: Literal["on", "off", "refresh", "read_only"]
    directory: Name
