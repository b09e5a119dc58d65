"""Tables of image paths and targets: CSV and TSV as `data.CsvImages` reads them, and advice on other formats."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.data.csv_rows import read_cells
from launcher.data.decoding import SUFFIXES
from launcher.data.names import nfc, split_named
from launcher.errors import UserError
from launcher.files import check_file
from launcher.init.columns import Column, targets_in, text_column
from launcher.init.findings import DataFindings, find, path_text
from launcher.init.hub import data_set
from launcher.recipe.protocols import TargetKind
from launcher.text import listed

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")

ROWS_TRIED = 50
"""The number of cells of a column, from its start to its end, that are looked for as files (up to twice as many)."""
FOLDERS_TRIED = 50
"""The most folders on each of two levels below a table in which its images are looked for."""

SPLIT_NAMES = ("split", "set", "subset", "partition")


def table(
    file: Path, val_file: Path | None = None, label: Sequence[str] = (), kind: TargetKind | None = None
) -> DataFindings:
    """Find the images and targets of a table; `label` and `kind` are the targets, if the user names them.

    Raises UserError for a file that no part reads, and if columns are unclear.
    """
    ending = file.suffix.lower()
    if ending == ".jsonl":
        return _json_lines(file)
    if ending == ".parquet":
        _check_parquet(file)
        return data_set(path_text(file), f"table {path_text(file)}", label=label, kind=kind)
    if ending not in TABLES:
        raise UserError(_no_table(file))
    header, columns = _read(file)
    where = path_text(file)
    _check_header(file, header)
    image_column, root = _images(file, header, columns)
    split_column = _split_column(where, header, columns) if val_file is None else None
    used = {image_column, split_column}
    others = [text_column(name, columns[name]) for name in header if name not in used]
    usable = [column for column in others if not _names_files(column, columns)]
    targets = targets_in(usable, where, list(map(nfc, label)), kind)
    fields: dict[str, Any] = {"path": where}
    if image_column != "path":
        fields["image_column"] = image_column
    if targets.columns != ("label",):
        fields["label_column"] = targets.columns[0] if len(targets.columns) == 1 else targets.columns
    if root != file.parent:
        fields["root"] = path_text(root)
    validation = None
    if val_file is not None:
        fields["val_path"] = path_text(val_file)
        validation = f"the file {val_file.name}"
    elif split_column is not None:
        fields["split_column"] = split_column
        validation = f"the rows that column {split_column!r} calls val"
    remarks = (targets.remark,) if targets.remark else ()
    data = find(f"table {where}", "CsvImages", fields, targets.kind, validation, remarks)
    if targets.kind == "class" and len(data.splits.names) < 2:
        raise UserError(f"{where}: the training rows have one class, {data.splits.names[0]!r}; two or more are needed")
    return data


def _read(file: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Return the header and the columns."""
    rows = read_cells(file)
    _, header = next(rows)
    if len(header) < 2:
        other = next((name for sign, name in ((";", "semicolons"), ("\t", "tabs"), (",", "commas"), ("|", "bars"))
                      if sign in header[0]), None)  # fmt: skip
        usual = "tabs" if file.suffix.lower() == ".tsv" else "commas"
        raise UserError(
            f"{file}: columns are separated by {other}, not by {usual}; "
            "write it with commas as .csv, or with tabs as .tsv"
            if other
            else f"{file}: has one column; wanted: one of image paths and one or more of targets, separated by {usual}"
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{file}: has several columns {twice[0]!r}; give each a name of its own")
    below = [row for _, row in rows]
    if not below:
        raise UserError(f"{file}: has no rows below its header")
    return header, {name: [row[place] for row in below] for place, name in enumerate(header)}


def _check_header(file: Path, header: Sequence[str]) -> None:
    """Raise UserError if the first line names an image, as it is no header then."""
    for root in _roots(file):
        image = next((cell for cell in header if Path(cell).suffix.lower() in SUFFIXES and _is_file(root, cell)), None)
        if image:
            names = ["path" if cell == image else "label" for cell in header]
            names = [name if names.index(name) == place else f"{name}_{place}" for place, name in enumerate(names)]
            raise UserError(
                f"{file}: has no header: its first line names the image {image!r}; put a line with the names of the "
                f"columns above it, such as {','.join(names)}"
            )


def _images(file: Path, header: Sequence[str], columns: dict[str, list[str]]) -> tuple[str, Path]:
    """Return the column whose cells are files, and the folder that they start from."""
    best: tuple[int, str, Path] | None = None
    tried: dict[str, list[str]] = {name: _spread([cell for cell in columns[name] if cell]) for name in header}
    roots = list(_roots(file))
    for name, cells in tried.items():
        if not cells or not any(Path(cell).suffix for cell in cells):
            continue  # classes may be names of folders, never of files with an ending
        for root in roots:
            there = sum(_is_file(root, cell) for cell in cells)
            if there * 2 > len(cells) and (best is None or there > best[0]):
                best = (there, name, root)
    if best is not None:
        return best[1], best[2]
    for name, cells in tried.items():
        for root in roots:
            ending = next((end for end in sorted(SUFFIXES) for cell in cells[:3] if _is_file(root, cell + end)), None)
            if ending:
                raise UserError(
                    f"{file}: column {name!r} names images without their ending: {cells[0]!r} for "
                    f"{cells[0] + ending!r} in {root}; write the whole names"
                )
    shown = next((name for name in header if any(Path(cell).suffix.lower() in SUFFIXES for cell in tried[name])), None)
    example = f"{tried[shown][0]!r} of column {shown!r} is not" if shown else "no cell of any column is a file"
    raise UserError(
        f"{file}: no column names images that are there: {example} in {file.parent} or a folder in it; columns: "
        f"{listed([repr(name) for name in header], 8)}"
    )


def _roots(file: Path) -> Iterator[Path]:
    """Yield folders that the paths of a table may start from, the likeliest first."""
    yield file.parent
    inner = sorted(_folders_in(file.parent))
    yield from (folders := [file.parent / name for name in inner[:FOLDERS_TRIED]])
    below = (folder / name for folder in folders for name in sorted(_folders_in(folder)))
    yield from itertools.islice(below, FOLDERS_TRIED)
    yield file.parent.parent
    yield Path.cwd()


def _folders_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return []


def _is_file(root: Path, cell: str) -> bool:
    try:
        return os.path.isfile(os.path.join(root, cell))  # noqa: PTH113, PTH118 - thousands of them
    except ValueError:  # a null byte
        return False


def _spread(cells: list[str]) -> list[str]:
    return cells[:: max(1, len(cells) // ROWS_TRIED)]


def _names_files(column: Column, columns: dict[str, list[str]]) -> bool:
    """Return whether a column names image files, as a second column of paths does (masks, for instance)."""
    cells = _spread([cell for cell in columns[column.name] if cell])
    return column.kind == "text" and all(Path(cell).suffix.lower() in SUFFIXES for cell in cells)


def _split_column(where: str, header: Sequence[str], columns: dict[str, list[str]]) -> str | None:
    for name in header:
        splits = set(map(split_named, columns[name]))  # as data.CsvImages reads the column
        if "train" not in splits or None in splits:
            continue
        if "val" in splits:
            return name
        if "test" in splits:
            raise UserError(
                f"{where}: column {name!r} says train and test, but val for no image; say val for those to validate "
                "on (test is for the very end, and not used in training)"
            )
    odd = next((name for name in header if name.lower() in SPLIT_NAMES), None)
    if odd is not None and set(map(split_named, columns[odd])) <= {"val", "test"}:
        raise UserError(f"{where}: column {odd!r} says train for no image; there is nothing to train on")
    if odd is not None and len({cell.lower() for cell in columns[odd]}) > 1:
        values = listed(sorted({repr(cell) for cell in columns[odd]}))
        raise UserError(f"{where}: column {odd!r} should say train, val or test, but says {values}; rename it or them")
    return None


def _json_lines(file: Path) -> DataFindings:
    if file.name == "metadata.jsonl":
        return data_set(path_text(file.parent), f"image folder {path_text(file.parent)} with {file.name}")
    raise UserError(
        f"{file}: no data part reads JSON lines under this name; call it metadata.jsonl, beside the images, with their "
        "paths in \"file_name\", or write it as CSV: datasets.Dataset.from_json('...').to_csv('...')"
    )


def _check_parquet(file: Path) -> None:
    """Raise UserError if a file is not parquet, as `datasets` would log several lines before it raises."""
    try:
        check_file(file)
        with file.open("rb") as stream:
            if stream.read(4) == b"PAR1":
                return
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror or error}") from error
    raise UserError(f"{file}: no parquet file, although its name ends so")


def _no_table(file: Path) -> str:
    expected = "wanted: a folder of class folders, a .csv, .tsv or .parquet file, or metadata.jsonl beside its images"
    if file.suffix.lower() in SUFFIXES:
        return f"{file}: an image; give the folder of all of them; {expected}"
    if file.suffix.lower() in (".xlsx", ".xls", ".ods"):
        return f"{file}: a spreadsheet; save it as CSV; {expected}"
    if file.suffix.lower() in (".zip", ".tar", ".gz", ".tgz", ".7z"):
        return f"{file}: an archive; unpack it; {expected}"
    return f"{file}: no table of images; {expected}"
