"""Suppression of W&B client errors: the experiment continues, and one warning is logged."""

from __future__ import annotations

import logging
from types import TracebackType

log = logging.getLogger(__name__)


class Forgiven:
    """A context that turns errors of the W&B client into one warning.

    The client raises errors of many kinds, most of them undocumented, when its service process dies or its server does
    not answer. Errors whose class the client defines, and those of the operating system, are suppressed; our own
    defects and a user's interrupt pass through.

    Args:
        warning: what to log, with `%s` for the first line of the error; None where it was logged before.
    """

    def __init__(self, warning: str | None) -> None:
        self._warning = warning
        self.failed = False

    def __enter__(self) -> Forgiven:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if kind is None or not (issubclass(kind, OSError) or kind.__module__.partition(".")[0] == "wandb"):
            return False
        if self._warning is not None:
            lines = str(error).strip().splitlines()
            log.warning(self._warning, lines[0] if lines else kind.__name__)
        self.failed = True
        return True
