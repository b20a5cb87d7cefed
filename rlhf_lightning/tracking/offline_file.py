"""Reader of W&B's run files: protocol buffers in LevelDB's log format.

An offline run cannot be queried. When it resumes, its files tell which rows it has, so that they are not sent again.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made at import, by protobuf version

FILE_HEADER, RECORD_HEADER, BLOCK = 7, 7, 32 * 1024
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file, in order.

    A last record that was cut off, by a kill or because it is still being written, is left out.
    """
    data = path.read_bytes()
    position, pieces = FILE_HEADER, b""
    while position + RECORD_HEADER <= len(data):
        left = BLOCK - position % BLOCK
        if left < RECORD_HEADER:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        position += RECORD_HEADER
        if position + length > len(data):
            return
        pieces += data[position : position + length]
        position += length
        if kind in (FULL, LAST):
            yield Record.FromString(pieces)
            pieces = b""


def next_step(wandb_dir: Path, run_id: str) -> int:
    """The step after the last row of history that a run's files hold; 0 where they hold none."""
    steps = [
        int(item.value_json)
        for path in wandb_dir.glob(f"*run-*-{run_id}/run-{run_id}.wandb")
        for record in records(path)
        if record.WhichOneof("record_type") == "history"
        for item in record.history.item
        if (item.key or item.nested_key[0]) == "_step"
    ]
    return max(steps, default=-1) + 1
