"""Tables on this disk that the `datasets` library reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import UserError

if TYPE_CHECKING:
    import datasets


def is_for_datasets(folder: Path) -> bool:
    """Whether a folder holds tables, not only images: looked for in the folder and one below."""
    try:
        folders = [folder, *(sub for sub in folder.iterdir() if sub.is_dir())]
        return any(_is_table(name) for sub in folders for name in os.listdir(sub))  # noqa: PTH208 - names are enough
    except OSError as error:
        raise UserError(f"data.path: cannot read {error.filename or folder}: {error.strerror or error}") from error


def _is_table(name: str) -> bool:
    return name.endswith((".parquet", ".arrow")) or name in ("metadata.csv", "metadata.jsonl", "dataset_dict.json")


def read_file(file: Path) -> datasets.Dataset:
    import datasets

    readers = {".parquet": lambda: datasets.Dataset.from_parquet(str(file)), ".arrow": lambda: _from_arrow(file)}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise UserError(
            f"data.path: {file} is neither a .parquet nor an .arrow file; a CSV file of paths is read by data.CsvImages"
        )
    try:
        return reader()
    except Exception as error:
        raise UserError(f"data.path: {file} cannot be read: {error}") from error


def _from_arrow(file: Path) -> datasets.Dataset:
    import datasets

    return datasets.Dataset.from_file(str(file))  # memory-mapped
