"""Datasets of the hub, or in a local directory or file, as rows.

Nothing that a dataset brings is executed: `datasets` has no loading scripts any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import datasets  # type: ignore[import-untyped]
from datasets import Dataset, DatasetDict

from rlhf_lightning.data.rows import Row
from rlhf_lightning.data.settings import HubData
from rlhf_lightning.errors import DataError
from rlhf_lightning.models.hub import hub_is_reachable

BUILDERS = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def hub_rows(settings: HubData) -> Iterator[Row]:
    """The rows of one split, in order.

    Raises:
        DataError: the dataset, its config or split does not exist, or it is neither cached nor reachable.
    """
    place = f"{settings.name} ({settings.split})"
    for number, fields in enumerate(_load(settings), start=1):
        yield Row(f"{place}: row {number}", fields)


def _load(settings: HubData) -> Dataset:
    path = Path(settings.name)
    try:
        if path.is_dir() and ((path / "state.json").exists() or (path / "dataset_dict.json").exists()):
            return _saved_to_disk(settings)
        if path.is_file():
            builder = next((name for suffix, name in BUILDERS.items() if path.name.endswith(suffix)), None)
            if builder is None:
                raise DataError(
                    "The file's format is not known from its name.",
                    where=str(path),
                    fix=f"use a file whose name ends in {', '.join(BUILDERS)}",
                )
            return cast(Dataset, datasets.load_dataset(builder, data_files=str(path), split=settings.split))
        with _offline_where_unreachable(local=path.exists()):
            return cast(Dataset, datasets.load_dataset(settings.name, settings.config, split=settings.split))
    except ConnectionError as error:
        raise DataError(
            f"The dataset {settings.name!r} is not in the cache, and the hub cannot be reached.",
            where=f"data.name={settings.name} (cache: {datasets.config.HF_DATASETS_CACHE})",
            fix="connect to the network once, or copy the dataset to this machine and give its directory as data.name "
            "(or its files with data=files)",
        ) from error
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"The dataset cannot be opened: {error}",
            where=f"data.name={settings.name} data.config={settings.config} data.split={settings.split}",
            fix="check the name, the config and the split",
        ) from error


def _saved_to_disk(settings: HubData) -> Dataset:
    saved = datasets.load_from_disk(settings.name)
    if not isinstance(saved, DatasetDict):
        return cast(Dataset, saved)
    if settings.split not in saved:
        raise ValueError(f"there is no split {settings.split!r} but {', '.join(map(str, saved))}")
    return cast(Dataset, saved[settings.split])


@contextmanager
def _offline_where_unreachable(*, local: bool) -> Iterator[None]:
    """Uses the cache at once where the hub cannot be reached, instead of after half a minute of retries."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or (not local and not hub_is_reachable())
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
