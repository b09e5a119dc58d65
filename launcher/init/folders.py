"""Folders of images: class folders, with or without train and val above them, or a table beside the images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from launcher.data.decoding import SUFFIXES
from launcher.data.local_tables import is_for_datasets
from launcher.data.names import SplitName, is_system_folder, split_named
from launcher.errors import UserError
from launcher.init.findings import DataFindings, find, path_text
from launcher.init.hub import data_set
from launcher.init.tables import TABLES, table
from launcher.recipe.protocols import TargetKind
from launcher.text import listed, one_line, plural

NO_CLASSES = {"images", "image", "img", "imgs", "labels", "annotations", "masks"}
"""Names of folders that tell where images are, not what they show."""


def folder(at: Path, label: Sequence[str] = (), kind: TargetKind | None = None) -> DataFindings:
    """Find the data in a folder. Raises UserError for one that no data part reads, with what would be right."""
    try:
        with os.scandir(at) as entries:
            names = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{at}: cannot be read: {error.strerror or error}") from error
    if not names:
        raise UserError(f"{at}: an empty folder; it should hold one folder of images per class, or a table of images")
    inner = [name for name, is_folder in names if is_folder and not is_system_folder(name)]
    beside = [name for name, is_folder in names if not is_folder and Path(name).suffix.lower() in TABLES]
    has_images = any(Path(name).suffix.lower() in SUFFIXES for name, is_folder in names if not is_folder)
    if has_images and len(beside) == 1 and beside[0].endswith(".parquet"):
        return table(at / beside[0], None, label, kind)  # `datasets` would read the images alone
    if is_for_datasets(at):
        return data_set(path_text(at), f"data set {path_text(at)}", label=label, kind=kind)
    if beside:
        train, val = _train_and_val(at, beside)
        try:
            return table(at / train, at / val if val else None, label, kind)
        except UserError:
            if label or len([name for name in inner if not _says_where(name)]) < 2:
                raise
            data = _class_folders(at, inner)
            remark = f"{train} beside the class folders is not used: its rows name no images"
            return _with_remark(data, remark)
    if label or kind not in (None, "class"):
        what = f"--label {label[0]}" if label else "--task"
        raise UserError(
            f"{what}: {at} holds class folders, which give one class per image; columns are those of a "
            "CSV or parquet file"
        )
    return _class_folders(at, inner)


def _says_where(name: str) -> bool:
    return name.lower() in NO_CLASSES or split_named(name) is not None


def _train_and_val(at: Path, tables: list[str]) -> tuple[str, str | None]:
    """Return the tables to train and to validate on: a single one, or train.csv and val.csv by their names."""

    def named(split: SplitName) -> list[str]:
        return [name for name in tables if split_named(Path(name).stem) == split]

    if len(tables) == 1:
        return tables[0], None
    train, val = named("train"), named("val")
    if len(train) != 1 or len(val) > 1:
        raise UserError(
            f"{at}: holds several tables: {listed(tables, most=5)}; name the one with the images and their targets"
        )
    return train[0], val[0] if val else None


def _class_folders(at: Path, inner: list[str]) -> DataFindings:
    if not inner:
        loose = sum(1 for name in os.listdir(at) if Path(name).suffix.lower() in SUFFIXES)  # noqa: PTH208
        what = f"{plural(loose, 'image', spec='')} without labels" if loose else "neither images nor a table"
        raise UserError(
            f"{at}: has {what}; expected one folder of images per class ({at.name}/<class>/<image>), or a CSV file "
            "of image paths and targets beside the images"
        )
    nested = {split_named(name): name for name in reversed(inner) if _has_folders(at / name)}
    train, val = nested.get("train"), nested.get("val")
    if train is None and val is None:
        if "test" in nested and len(nested) == 1:
            raise UserError(
                f"{at}: has a folder {nested['test']!r} but none named 'train'; "
                "expected train/<class>/<image> beside it"
            )
        unlabelled = [name for name in inner if _says_where(name)]
        if unlabelled and len(inner) - len(unlabelled) < 2:
            raise UserError(
                f"{at}: images in {listed([repr(name) for name in unlabelled])} are in no class folders; expected "
                f"{at.name}/train/<class>/<image>, or a CSV file of image paths and targets beside the images"
            )
    flat = [name for name in inner if split_named(name) == "val"] if train and not val else []
    data = find(
        f"image folder {path_text(at)}",
        "ImageFolder",
        {"root": path_text(at)},
        "class",
        f"{val}/" if train and val else None,
        (f"{flat[0]}/ has no class folders, so its images are not used",) if flat else (),
    )
    if len(data.splits.names) == 1:
        where = at / train if train else at
        raise UserError(
            f"{where}: has one class folder, {data.splits.names[0]!r}, so there is nothing to tell apart; expected "
            "two or more, one for each class"
        )
    return _with_remark(data, _skipped(data.splits.skipped)) if data.splits.skipped else data


def _skipped(skipped: tuple[str, ...]) -> str:
    count = plural(len(skipped), "file is", "files are", spec="")
    return f"{count} left out: {listed(list(map(one_line, skipped)), 2)}"


def _has_folders(at: Path) -> bool:
    with os.scandir(at) as entries:
        return any(entry.is_dir() and not entry.name.startswith(".") for entry in entries)


def _with_remark(data: DataFindings, remark: str) -> DataFindings:
    return dataclasses.replace(data, remarks=(*data.remarks, remark))
