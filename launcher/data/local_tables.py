"""Local tables that the `datasets` library reads."""

from __future__ import annotations

import contextlib
import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.assets.git_lfs import LFS_POINTER, is_lfs_pointer
from launcher.errors import UserError

if TYPE_CHECKING:
    import datasets


def is_for_datasets(folder: Path) -> bool:
    """Return whether a folder, or a folder directly in it, contains tables and not only images.

    Raises UserError if it cannot be read.
    """
    try:
        folders = [folder, *(sub for sub in folder.iterdir() if sub.is_dir())]
        return any(_is_table(name) for sub in folders for name in os.listdir(sub))  # noqa: PTH208 - names are enough
    except OSError as error:
        raise UserError(f"data.path: cannot read {error.filename or folder}: {error.strerror or error}") from error


def _is_table(name: str) -> bool:
    return name.endswith((".parquet", ".arrow")) or name in ("metadata.csv", "metadata.jsonl", "dataset_dict.json")


def read_file(file: Path) -> datasets.Dataset:
    """Read a parquet or arrow file. Raises UserError for files of other types and unreadable ones."""
    import datasets

    # `datasets` takes paths for patterns: [ ] in a name would match a single letter.
    readers = {
        ".parquet": lambda: datasets.Dataset.from_parquet(glob.escape(str(file))),
        ".arrow": lambda: datasets.Dataset.from_file(str(file)),  # memory-mapped
    }
    reader = readers.get(file.suffix.lower())
    if is_lfs_pointer(file):
        raise UserError(f"data.path: {file} is {LFS_POINTER}")
    if reader is None:
        raise UserError(
            f"data.path: {file} is neither a .parquet nor an .arrow file; a CSV file of paths is read by data.CsvImages"
        )
    try:
        return reader()
    except Exception as error:
        raise UserError(f"data.path: {file} cannot be read: {error}") from error


def read_folder(folder: Path, name: str | None) -> dict[str, datasets.Dataset]:
    """Read the tables of a folder, by split.

    Raises whatever `datasets` raises, and ValueError for git-lfs pointers and for a configuration (`name`) below a path
    with *, ? or [ ] in it.
    """
    import datasets
    from datasets.data_files import get_data_patterns

    pointers = [path for path in sorted(folder.iterdir()) if path.suffix == ".parquet" and is_lfs_pointer(path)]
    if pointers:
        raise ValueError(f"{pointers[0].name} is {LFS_POINTER}")
    if not glob.has_magic(str(folder)):
        return dict(datasets.load_dataset(str(folder), name))
    if name is not None:
        raise ValueError(
            f"configurations (data.name={name!r}) are not read from a path with *, ? or [ ] in it; rename it"
        )
    base = glob.escape(str(folder.resolve()))
    # Absolute patterns of our own, as `datasets` does not escape the folder that it looks in.
    files = {
        str(split): [os.path.join(base, pattern) for pattern in patterns]  # noqa: PTH118
        for split, patterns in get_data_patterns(base).items()
    }
    endings = {os.path.splitext(file)[1] for _, _, names in os.walk(folder) for file in names}  # noqa: PTH122
    reader = next((kind for kind in ("parquet", "arrow") if f".{kind}" in endings), "imagefolder")
    return dict(datasets.load_dataset(reader, data_files=files))


def unused_tables(folder: Path) -> list[str]:
    """Return the names of tables that `read_folder` leaves out, because `datasets` silently does.

    If some files are named after splits, these are the files that are not.
    """
    from datasets.data_files import get_data_patterns, resolve_pattern

    tables = set()
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        tables |= {Path(at, name) for name in files if name.endswith((".parquet", ".arrow"))}
    if len(tables) < 2 or (folder / "README.md").exists():  # a README may assign files to splits itself
        return []
    base = glob.escape(str(folder.resolve()))
    used: set[Path] = set()
    for pattern in (pattern for patterns in get_data_patterns(base).values() for pattern in patterns):
        with contextlib.suppress(FileNotFoundError):  # no file has such a name
            used.update(Path(file) for file in resolve_pattern(os.path.join(base, pattern), base))  # noqa: PTH118
    names = (path.relative_to(folder) for path in tables)
    return sorted(str(name) for name in names if folder.resolve() / name not in used)
