"""Data sets that `datasets` reads: from the hub, or parquet and arrow files and folders on this disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.data import HuggingFace
from launcher.data.arrow_columns import is_image
from launcher.data.decoding import SUFFIXES
from launcher.data.names import split_named
from launcher.errors import UserError
from launcher.init.columns import FEW_NUMBERS, Column, looks_like_lists, targets_in, typed_column
from launcher.init.findings import DataFindings, find
from launcher.recipe.protocols import TargetKind
from launcher.text import listed, plural

if TYPE_CHECKING:
    import datasets

IMAGE_NAMES = ("image", "img", "picture", "photo", "pixel_values")
VAL_NAMES = ("validation", "val", "valid")
"""Names of the validation split, in the order in which `data.HuggingFace` looks for them."""


def data_set(
    path: str, title: str, name: str | None = None, label: Sequence[str] = (), kind: TargetKind | None = None
) -> DataFindings:
    """Load a data set as training would, and find its images and targets by its columns.

    Raises UserError if it cannot be loaded, or has no split, images or targets to train on.
    """
    fields: dict[str, Any] = {"path": path} | ({"name": name} if name else {})
    tables = HuggingFace(**fields).tables()
    train = _train_split(path, tables)
    if train != "train" and not Path(path).is_file():
        fields["train_split"] = train
    table = tables[train]
    if not len(table):
        raise UserError(f"{path}: its split {train!r} has no rows")
    images, image_remark = _image_column(path, table)
    if images is not None:
        fields["image_column"] = images
    columns = [
        column
        for name, feature in table.features.items()
        if name != images
        and not is_image(feature)
        and not _holds_paths(table, name)
        and (column := _column(table, name, feature)) is not None
    ]
    targets = targets_in(columns, path, label, kind)
    fields["label_column"] = targets.columns[0] if len(targets.columns) == 1 else targets.columns
    others = [name for name in tables if name != train]
    val = next(iter([name for name in VAL_NAMES if name in others] or filter(_is_val, others)), None)
    validation = f"the split {val!r}" if val else None
    remarks = [image_remark, targets.remark]
    if "test" in tables and train != "test":
        remarks.append(f"the split 'test' ({plural(len(tables['test']), 'image')}) is kept for the end")
    return find(title, "HuggingFace", fields, targets.kind, validation, tuple(filter(None, remarks)))


def _train_split(path: str, tables: Mapping[str, datasets.Dataset]) -> str:
    if "train" in tables:
        return "train"
    if len(tables) == 1:
        return next(iter(tables))
    raise UserError(
        f"{path}: has the splits {listed([repr(name) for name in tables], 6)}, and none of them is 'train'; write a "
        f"recipe with data.HuggingFace(path={path!r}, train_split=...)"
    )


def _image_column(path: str, table: datasets.Dataset) -> tuple[str | None, str]:
    """Return the column of images, if it has to be named, and a remark on this choice."""
    features = table.features
    columns = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    columns = columns or [name for name, feature in features.items() if is_image(feature)]
    if not columns and Path(path).exists():
        columns = [name for name in features if _holds_paths(table, name)]
    if len(columns) == 1:
        return None, ""
    if columns:
        chosen = next((name for name in IMAGE_NAMES for column in columns if column.lower() == name), columns[0])
        others = [repr(name) for name in columns if name != chosen]
        return chosen, f"images are those of column {chosen!r}, not of {', '.join(others)}"
    raise UserError(
        f"{path}: no column holds images (datasets.Image, bytes, structs of bytes and path, or paths of image files); "
        f"there are: {', '.join(features)}"
    )


def _is_val(name: str) -> bool:
    return split_named(name) == "val"


def _holds_paths(table: datasets.Dataset, name: str) -> bool:
    """Return whether a column of text names image files."""
    if "string" not in str(getattr(table.features[name], "dtype", "")):
        return False
    return all(isinstance(cell, str) and Path(cell).suffix.lower() in SUFFIXES for cell in table[name][:20])


def _column(table: datasets.Dataset, name: str, feature: Any) -> Column | None:
    """Summarise a column; return None if it holds neither classes, nor numbers, nor lists of them."""
    inner = getattr(feature, "feature", None)
    if inner is not None:
        simple = hasattr(inner, "names") or str(getattr(inner, "dtype", "")).startswith(
            ("int", "uint", "string", "bool", "float")
        )
        return typed_column(name, table.select_columns([name]), "list") if simple else None
    if hasattr(feature, "names"):
        return typed_column(name, table[name][:], "names")
    dtype = str(getattr(feature, "dtype", ""))
    if "string" in dtype:
        cells = [cell for cell in table[name][:] if cell]
        lists = bool(cells) and looks_like_lists(set(cells))
        return typed_column(name, table[name][:], "list" if lists else "text")
    if dtype == "bool" or dtype.startswith(("int", "uint")):
        return typed_column(name, table[name][:], "int")
    if dtype.startswith("float"):
        values = [value for value in table[name][:] if value is not None and value == value]
        # Few whole numbers are classes: pandas makes floats of them if a cell of the column is empty.
        integral = len(set(values)) <= FEW_NUMBERS and all(float(value).is_integer() for value in values)
        return typed_column(name, values, "int" if integral else "float")
    return None
