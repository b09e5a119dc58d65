"""A folder of class folders, with or without train and val folders above them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from launcher.errors import Problems, UserError
from launcher.recipe.assets import OwnPath
from launcher.recipe.data.decoding import SUFFIXES
from launcher.recipe.data.sources import FileImages
from launcher.recipe.data.splitting import set_aside
from launcher.recipe.data.targets import listed, one_line, refuse
from launcher.recipe.part import part
from launcher.recipe.protocols import Split, Splits, TargetKind

PathText = Annotated[str, BeforeValidator(lambda path: os.fspath(path) if isinstance(path, os.PathLike) else path)]
"""A path as text (a recipe is stored as JSON); pathlib's paths are taken, too."""

_TRAIN_NAMES = ("train", "training")
_VAL_NAMES = ("val", "valid", "validation")


@part
class ImageFolder:
    """Images in one folder per class, in any depth below it.

    `root` holds `train` and `val` (or `valid`, `validation`) with the class folders, or the class folders themselves;
    a fraction of each class is then set aside for validation. Classes are the training folders, sorted by name as text,
    and validation folders are matched by name. Hidden files and folders are ignored. Files of other types in class
    folders are left out and listed in `Splits.skipped`.
    """

    root: PathText
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class set aside for validation, where there is no folder for it."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """What an image that cannot be decoded does: stop the run before training starts, or be left out and listed."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """See `protocols.Data`. Raises UserError for a missing folder, empty classes, unknown classes in val."""
        refuse("ImageFolder", "class", target_kind)
        return read_folders("data.root", self.root, self.val_fraction, seed)

    def assets(self) -> list[OwnPath]:
        """The folder of images: the user's own, which stays where it is."""
        return [OwnPath(field=f"data.root={self.root!r}", path=Path(self.root).expanduser().absolute())]


def read_folders(
    field: str, root: str, val_fraction: float, seed: int, train: str | None = None, val: str | None = None
) -> Splits:
    """The splits of an image folder; `field` is what its errors call it, `train` and `val` name folders in it."""
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise UserError(f"{field}: {folder} {what}; it should hold one folder of images per class")
    try:
        return _read(field, folder, val_fraction, seed, train, val)
    except OSError as error:
        raise UserError(f"{field}: cannot read {error.filename or folder}: {error.strerror or error}") from error


def read_labelled(field: str, root: str, names: tuple[str, ...]) -> tuple[Split, list[str]]:
    """Images in a folder for each class, of which some may be absent, with the places of the classes in `names`; and
    what was left out. Raises UserError for a class that is not among them."""
    folder = Path(root).expanduser().absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise UserError(f"{field}: {folder} {what}; it should hold one folder of images per class")
    skipped: list[str] = []
    try:
        if not _subfolders(folder):
            raise UserError(
                f"{field}: {folder} has no class folders, so no classes to compare with; for images without them: "
                "python -m launcher predict RUN_DIR FOLDER"
            )
        classes = _read_classes(field, folder, skipped)
    except OSError as error:
        raise UserError(f"{field}: cannot read {error.filename or folder}: {error.strerror or error}") from error
    if unknown := [name for name in classes if name not in names]:
        raise UserError(
            f"{field}: {folder} has {len(unknown)} class folder(s) that the model does not know: "
            f"{listed([repr(name) for name in unknown])}; it knows {listed([repr(name) for name in names], most=10)}"
        )
    return _split(folder, names, classes), skipped


def _read(field: str, folder: Path, val_fraction: float, seed: int, train: str | None, val: str | None) -> Splits:
    train_folder = _part(field, folder, (train,), required=True) if train else _part(field, folder, _TRAIN_NAMES)
    val_folder = _part(field, folder, _also(val), required=True) if val else _part(field, folder, _VAL_NAMES)
    if val_folder and not train_folder:
        raise UserError(
            f"{field}: {folder} has a folder {val_folder.name!r} but none named 'train'; "
            "expected train/<class>/<image> beside it"
        )

    problems = Problems()
    skipped: list[str] = []
    classes: dict[str, list[str]] = {}
    val_classes: dict[str, list[str]] = {}
    with problems.collected():
        classes = _read_classes(field, train_folder or folder, skipped)
    with problems.collected():
        val_classes = _read_classes(field, val_folder, skipped) if val_folder else {}
    unknown = [name for name in val_classes if name not in classes]
    if classes and unknown:
        problems.found.append(
            f"{field}: {val_folder} has {len(unknown)} class folder(s) that {train_folder} lacks: "
            f"{listed([repr(name) for name in unknown])}; classes are fixed by the training images"
        )
    problems.raise_if_any()

    names = tuple(classes)
    train_split = _split(train_folder or folder, names, classes)
    if val_folder:
        return Splits(train_split, _split(val_folder, names, val_classes), names, tuple(skipped))
    return set_aside(train_split.images, train_split.targets, names, val_fraction, seed, tuple(skipped))


def _part(field: str, folder: Path, names: tuple[str, ...], required: bool = False) -> Path | None:
    """The one sub-folder with one of these names, in any case, that holds folders ("train" may also be a class)."""
    found = [sub for sub in _subfolders(folder) if sub.name.lower() in names or sub.name in names]
    found = [sub for sub in found if _subfolders(sub)]
    if len(found) > 1:
        raise UserError(f"{field}: {folder} has {listed([repr(sub.name) for sub in found])}; keep one of them")
    if required and not found:
        raise UserError(f"{field}: {folder} has no folder {names[0]!r} with class folders in it")
    return found[0] if found else None


def _also(val: str) -> tuple[str, ...]:
    """A validation folder may have any of its usual names."""
    return (val, *_VAL_NAMES) if val in _VAL_NAMES else (val,)


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _read_classes(field: str, folder: Path, skipped: list[str]) -> dict[str, list[str]]:
    """Paths of images relative to `folder`, sorted, by class; adds what is left out to `skipped`."""
    classes = {sub.name: _images_below(sub, folder, skipped) for sub in _subfolders(folder)}
    loose = [path.name for path in sorted(folder.iterdir()) if _is_image(path.name) and path.is_file()]
    if not classes:
        has = f"{len(loose)} images but no class folders" if loose else "no class folders"
        raise UserError(f"{field}: {folder} has {has}; expected {folder.name}/<class>/<image>")
    skipped.extend(f"{one_line(str(folder / name))} (not in a class folder)" for name in loose)
    empty = [name for name, paths in classes.items() if not paths]
    if len(empty) == len(classes):
        raise UserError(f"{field}: no images in {folder} ({len(classes)} class folders, all empty)")
    if empty:
        shown = listed([repr(name) for name in empty])
        raise UserError(
            f"{field}: {len(empty)} class folder(s) of {folder} without an image: {shown}; fill or remove them"
        )
    return classes


def _images_below(class_folder: Path, base: Path, skipped: list[str]) -> list[str]:
    found = []
    prefix = len(os.path.join(base, ""))  # noqa: PTH118 - Path objects for a million files take seconds
    for at, folders, files in os.walk(class_folder, onerror=_fail, followlinks=True):
        # Links are followed (downloaded data sets are often links into a cache), but not round in circles.
        real, parent = os.path.realpath(at), os.path.realpath(os.path.dirname(at))  # noqa: PTH120
        if f"{parent}/".startswith(f"{real}/"):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = f"{at}{os.sep}{name}"
            if _is_image(name):
                found.append(path[prefix:])
            elif not name.startswith("."):
                skipped.append(f"{one_line(path)} (not an image)")
    return sorted(found)


def _fail(error: OSError) -> None:
    raise error  # os.walk alone would leave out what it may not read


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def _split(folder: Path, names: tuple[str, ...], classes: dict[str, list[str]]) -> Split:
    counts = [len(classes.get(name, ())) for name in names]
    paths = [path for name in names for path in classes.get(name, ())]
    return Split(images=FileImages(folder, paths), targets=np.repeat(np.arange(len(names), dtype=np.int64), counts))
