"""Reads the file of an offline W&B run: protocol buffers in LevelDB's log format."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER, RECORD_HEADER, BLOCK = 7, 7, 32 * 1024
FULL, LAST = 1, 4


class OfflineRun:
    """What an offline run recorded.

    Attributes:
        run: how it was filed (`run_id`, `run_group`, `job_type`, `display_name`, `tags`, `notes`).
        config: by key.
        history: logged rows, by key; W&B's own columns (`_step`, ...) left out.
        summary: figures that were set as summary, by key.
        axes: the x-axis of each declared metric.
        exit_code: None while it is not finished.
    """

    def __init__(self, directory: Path) -> None:
        (path,) = directory.glob("*.wandb")
        self.directory = directory
        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.exit_code: int | None = None
        for record in _records(path.read_bytes()):
            self._take(record)

    def _take(self, record: Record) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self.config |= _values(record.run.config.update)
        elif kind == "history":
            row = _values(record.history.item)
            self.history.append({key: value for key, value in row.items() if not key.startswith("_")})
        elif kind == "summary":
            self.summary |= _values(record.summary.update)
        elif kind == "metric":
            self.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            self.exit_code = record.exit.exit_code


def _values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[Record]:
    position, pieces = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += RECORD_HEADER
        pieces += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield Record.FromString(pieces)
            pieces = b""
