"""Images with targets that a model did not see in training: the test split of the run's data, or given files.

Nothing but `evaluate` reads targets of a test split; `init` and `plan` count its images.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from launcher.data import CsvImages, HuggingFace, ImageFolder, Torchvision
from launcher.data.folder import read_labelled
from launcher.data.targets import MEANING
from launcher.errors import UserError
from launcher.files import expanded
from launcher.recipe.abilities import HasImageColumn, HasLabelColumn
from launcher.recipe.protocols import Data, Split, Splits, TargetKind
from launcher.text import plural

TABLES = (".csv", ".tsv", ".parquet", ".arrow")


def test_split(data: Data, target_kind: TargetKind, splits: Splits) -> Split | None:
    """Return the images that a data part keeps for the very end, or None if it has none.

    `splits` is the result of its `build`; a user's own part gives the images in `Splits.test`. Raises UserError for
    targets that the model does not know.
    """
    if splits.test is not None:
        return splits.test
    if isinstance(data, CsvImages | HuggingFace):
        return data.test_images(target_kind, splits.names)
    return data.test_images(splits.names) if isinstance(data, ImageFolder | Torchvision) else None


def test_line(data: Data, target_kind: TargetKind, splits: Splits) -> str | None:
    """Return a line with the number of test images, or with what is wrong with them; None if there are none."""
    try:
        split = test_split(data, target_kind, splits)
    except UserError as error:
        return f"the test split cannot be used: {error.problems[0]}"
    if split is None:
        return None
    images = plural(len(split), "test image")
    return f"{images}, untouched; at the end: python -m launcher evaluate RUN_DIR --split test"


def read_other(data: Data, target_kind: TargetKind, names: tuple[str, ...], path: Path) -> tuple[Split, list[str]]:
    """Return the images that `evaluate --data` names, and the files among them that were left out.

    `path` is a folder with a folder for each class, or a table with the run's own columns: a CSV or parquet file, or a
    folder that holds one. Raises UserError for files that cannot be read, and for targets that the model does not know.
    """
    where = expanded(path).absolute()
    if where.is_dir() and target_kind != "class":
        tables = sorted(file for file in where.iterdir() if file.suffix.lower() in TABLES)
        if len(tables) != 1:
            holds = f"holds {len(tables)} tables" if tables else "holds no table"
            raise UserError(
                f"--data {path}: {holds}, and class folders give {MEANING['class']}, but the task reads "
                f"{MEANING[target_kind]}; name a CSV or parquet file with the columns of the run's own"
            )
        where = tables[0]
    if where.exists() and not where.is_dir() and where.suffix.lower() in TABLES:
        return _read_table(data, target_kind, names, where), []
    if where.exists() and not where.is_dir():
        raise UserError(f"--data {path}: neither a folder nor a table; give a folder, or a .csv, .tsv or .parquet file")
    return read_labelled("--data", str(path), names)


def _read_table(data: Data, target_kind: TargetKind, names: tuple[str, ...], file: Path) -> Split:
    image = data.image_column if isinstance(data, HasImageColumn) else None
    label = data.label_column if isinstance(data, HasLabelColumn) else None
    if target_kind == "values" and label is None:
        label = names
    if file.suffix.lower() in (".csv", ".tsv"):
        if not isinstance(data, CsvImages):
            data = CsvImages(path=str(file), image_column=image or "path", label_column=label or "label")
        return data.other_images("--data", str(file), target_kind, names)
    if isinstance(data, HuggingFace):
        table = dataclasses.replace(data, label_column=label)
    else:
        table = HuggingFace(path=str(file), label_column=label)
        if image in table.tables()[table.train_split].column_names:
            table = dataclasses.replace(table, image_column=image)
    try:
        return table.other_images(file, target_kind, names)
    except UserError as error:
        raise UserError(*(f"--data {file}: {problem}" for problem in error.problems)) from error
