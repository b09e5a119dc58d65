"""Data sets that `datasets` reads: of the hub, or parquet and arrow files and folders on this disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.errors import UserError
from launcher.recipe.data import HuggingFace
from launcher.recipe.data.targets import listed
from launcher.results.init.columns import Column, targets_in, typed_column
from launcher.results.init.found import Found, find

if TYPE_CHECKING:
    import datasets

IMAGE_NAMES = ("image", "img", "picture", "photo", "pixel_values")
VAL_NAMES = ("validation", "val", "valid")
"""As `data.HuggingFace` looks for them."""


def data_set(path: str, title: str, name: str | None = None) -> Found:
    """What the columns of a data set say; it is loaded for that, as training would. Raises UserError."""
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
        if name != images and not _is_image(feature) and (column := _column(table, name, feature)) is not None
    ]
    targets = targets_in(columns, path, lists_are_read=True)
    fields["label_column"] = targets.columns[0] if len(targets.columns) == 1 else targets.columns
    val = next((name for name in VAL_NAMES if name in tables and name != train), None)
    validation = f"the split {val!r}" if val else None
    remarks = [image_remark, targets.remark]
    if "test" in tables and train != "test":
        remarks.append(f"the split 'test' ({len(tables['test']):,} images) is kept for the end")
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
    """The column of images, where it has to be named; and what is to be said of it."""
    features = table.features
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    found = found or [name for name, feature in features.items() if _is_image(feature)]
    if len(found) == 1:
        return None, ""
    if found:
        chosen = next((name for name in IMAGE_NAMES for column in found if column.lower() == name), found[0])
        others = [repr(name) for name in found if name != chosen]
        return chosen, f"images are those of column {chosen!r}, not of {', '.join(others)}"
    stored = [name for name, feature in features.items() if isinstance(feature, dict) and "bytes" in feature]
    if stored:
        raise UserError(
            f"{path}: column {stored[0]!r} holds images as bytes and path, but its type does not say so; write it "
            f"again after dataset.cast_column({stored[0]!r}, datasets.Image())"
        )
    raise UserError(
        f"{path}: no column holds images (datasets.Image, or bytes); there are: {', '.join(features)}. A table of "
        "image paths is read from a CSV file: datasets.Dataset.from_parquet('...').to_csv('...')"
    )


def _is_image(feature: Any) -> bool:
    return type(feature).__name__ == "Image" or str(getattr(feature, "dtype", "")).endswith("binary")


def _column(table: datasets.Dataset, name: str, feature: Any) -> Column | None:
    """None for what is neither a class, nor a number, nor a list of them."""
    inner = getattr(feature, "feature", None)
    if inner is not None:
        simple = hasattr(inner, "names") or str(getattr(inner, "dtype", "")).startswith(("int", "string"))
        return typed_column(name, table.select_columns([name]), "list") if simple else None
    if hasattr(feature, "names"):
        return typed_column(name, table[name][:], "names")
    dtype = str(getattr(feature, "dtype", ""))
    if "string" in dtype:
        return typed_column(name, table[name][:], "text")
    if dtype == "bool" or dtype.startswith(("int", "uint")):
        return typed_column(name, table[name][:], "int")
    if dtype.startswith("float"):
        return typed_column(name, table[name][:], "float")
    return None
