"""Folders of class folders, with or without train and val folders above them."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from launcher.assets.bundle import OwnPath
from launcher.data.decoding import SUFFIXES
from launcher.data.folder_layout import OF_A_RUN, check_layout, copies_inside, made_by_launcher
from launcher.data.names import SplitName, is_system_folder, nfc, split_named
from launcher.data.sources import FileImages
from launcher.data.split import set_aside
from launcher.data.targets import refuse
from launcher.errors import Problems, UserError
from launcher.files import expanded
from launcher.recipe.part import part
from launcher.recipe.protocols import Split, Splits, TargetKind
from launcher.text import listed, one_line, plural


def _as_text(path: object) -> object:
    if path == "":  # pathlib would take it for the current folder
        raise ValueError("is empty; give a path")
    return os.fspath(path) if isinstance(path, os.PathLike) else path


PathText = Annotated[str, BeforeValidator(_as_text)]
"""Path as text, because a recipe is stored as JSON; pathlib's paths are accepted, too."""

_USUAL: dict[SplitName, tuple[str, ...]] = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""Usual names of the splits' folders; synonyms ("training_set", "dev") are looked for only if none of these exists."""


@part
class ImageFolder:
    """Images in one folder per class, at any depth below it.

    `root` holds `train` and `val` (or "training_set", "valid", "dev", ...) with the class folders, or the class folders
    themselves; in the latter case a fraction of each class is set aside for validation. Classes are the training
    folders, sorted by name as text; validation folders are matched by name, whatever their Unicode form. Hidden files
    are ignored. Files of other types in class folders, and hidden and system folders with images in them
    (".thumbnails", "@eaDir"), are left out and listed in `Splits.skipped`.
    """

    root: PathText
    val_fraction: float = Field(default=0.2, gt=0, lt=1)
    """Fraction of each class set aside for validation if there is no validation folder."""
    test: PathText | None = None
    """Folder of test images, with a folder for each class; None: the folder "test" beside the training images' folder,
    if there is one. Read by `evaluate --split test` alone."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Treatment of images that cannot be decoded: stop the run before training starts, or leave them out and list
    them."""

    def build(self, target_kind: TargetKind, seed: int) -> Splits:
        """Read the splits, as `protocols.Data` describes.

        Raises UserError for a missing folder, empty classes, and unknown classes in the validation folder.
        """
        refuse("ImageFolder", "class", target_kind)
        test = None if self.test is None else Path(self.test)
        return read_folders("data.root", self.root, self.val_fraction, seed, test=test)

    def test_images(self, names: tuple[str, ...]) -> Split | None:
        """Return the test images, or None if there are none; `names` come from the training images.

        Raises UserError as `build` does, and for a class that is not among `names`.
        """
        if self.test is not None:
            return read_labelled("data.test", self.test, names)[0]
        return read_test_folder("data.root", expanded(self.root).absolute(), None, names)

    def assets(self) -> list[OwnPath]:
        """Return the folders of images: the user's own, which stay where they are."""
        return own_paths(root=self.root, test=self.test)


def own_paths(**paths: str | None) -> list[OwnPath]:
    """Return the user's own files and folders, given by the fields of a data part that name them."""
    return [
        OwnPath(field=f"data.{name}={path!r}", path=expanded(path).absolute())
        for name, path in paths.items()
        if path is not None
    ]


def read_folders(
    field: str,
    root: str,
    val_fraction: float,
    seed: int,
    train: str | None = None,
    val: str | None = None,
    test: Path | None = None,
) -> Splits:
    """Read the splits of an image folder.

    `field` is the recipe's field that errors name. `train` and `val` are the names of folders in it; if they are the
    same, a fraction of that folder is set aside for validation. `test` is the folder of the test images, if the recipe
    names it. Raises UserError as `ImageFolder.build` does.
    """
    folder = expanded(root).absolute()
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise UserError(f"{field}: {folder} {what}; it should hold one folder of images per class")
    try:
        return _read(field, folder, val_fraction, seed, train, val, test and expanded(test).absolute())
    except OSError as error:
        raise UserError(f"{field}: cannot read {error.filename or folder}: {error.strerror or error}") from error


def read_test_folder(field: str, folder: Path, named: str | None, names: tuple[str, ...]) -> Split | None:
    """Return the images of the test folder beside the training images' folder, or None if there is none.

    The test folder is the one called `named` or, without it, by a name for test images. Raises UserError as
    `read_labelled` does, and if there is no folder `named`.
    """
    if named is None and not _part(field, folder, "train", None):
        return None
    test_folder = _part(field, folder, "test", named)
    return read_labelled(field, str(test_folder), names)[0] if test_folder else None


def read_labelled(field: str, root: str, names: tuple[str, ...]) -> tuple[Split, list[str]]:
    """Return the images in one folder per class, and a line for each file or folder that was left out.

    Targets are the places of the classes in `names`, of which some may have no folder. Raises UserError for a class
    that is not among `names`, and for a folder that is missing, unreadable or without class folders.
    """
    folder = expanded(root).absolute()
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
    places = {nfc(name): name for name in names}  # names from older runs may be in any Unicode form
    if unknown := [name for name in classes if name not in places]:
        raise UserError(
            f"{field}: {folder} has {len(unknown)} class folder(s) that the model does not know: "
            f"{listed([repr(name) for name in unknown])}; it knows {listed([repr(name) for name in names], most=10)}"
        )
    return _split(folder, names, {places[name]: paths for name, paths in classes.items()}), skipped


def _read(
    field: str, folder: Path, val_fraction: float, seed: int, train: str | None, val: str | None, test: Path | None
) -> Splits:
    train_folder = _part(field, folder, "train", train)
    val_folder = None if val is not None and val == (train or "train") else _part(field, folder, "val", val)
    if val_folder and not train_folder:
        raise UserError(
            f"{field}: {folder} has a folder {val_folder.name!r} but none named 'train'; "
            "expected train/<class>/<image> beside it"
        )

    if test is not None:
        _check_test_folder(field, folder, train_folder, val_folder, test)
    problems = Problems()
    skipped: list[str] = []
    notes: list[str] = []
    classes: dict[str, list[str]] = {}
    val_classes: dict[str, list[str]] = {}
    with problems.collected():
        classes = _read_classes(field, train_folder or folder, skipped, notes)
    with problems.collected():
        val_classes = _read_classes(field, val_folder, skipped, notes) if val_folder else {}
    unknown = [name for name in val_classes if name not in classes]
    if classes and unknown:
        problems.found.append(
            f"{field}: {val_folder} has {len(unknown)} class folder(s) that {train_folder} lacks: "
            f"{listed([repr(name) for name in unknown])}; classes are fixed by the training images"
        )
    problems.raise_if_any()

    if train_folder:
        unused = [sub.name for sub in _subfolders(folder) if sub not in (train_folder, val_folder, test)]
        unused = [name for name in unused if split_named(name) != "test"]
        if unused:
            shown = listed([f"{one_line(name)}/" for name in unused])
            notes.append(f"not used: {shown} beside {train_folder.name}/ in {one_line(str(folder))}")
    names = tuple(classes)
    train_split = _split(train_folder or folder, names, classes)
    if val_folder:
        return Splits(train_split, _split(val_folder, names, val_classes), names, tuple(skipped), tuple(notes))
    splits = set_aside(train_split.images, train_split.targets, names, val_fraction, seed, tuple(skipped))
    return dataclasses.replace(splits, notes=tuple(notes))


def _check_test_folder(
    field: str, folder: Path, train_folder: Path | None, val_folder: Path | None, test: Path
) -> None:
    """Raise UserError if the test images would be used for training or validation."""
    where = test.resolve()
    for other, use in ((train_folder or folder, "trained"), (val_folder, "validated")):
        if other is not None and where == other.resolve():
            raise UserError(f"{field}: the test images in {test} are {use} on, too; name others")
    if train_folder is None and folder.resolve() in where.parents:
        raise UserError(
            f"{field}: {folder} has no folder for training, so that {test.name!r} in it would be a class; put the "
            f"class folders into {folder / 'train'}, or the test images elsewhere"
        )


def _part(field: str, folder: Path, split: SplitName, named: str | None) -> Path | None:
    """Return the only subfolder called `named`, or by a name for the split, or None if there is none.

    It must contain folders itself, because "train" may also be a class. Raises UserError if there are several, or none
    called `named`.
    """
    subfolders = [sub for sub in _subfolders(folder) if _subfolders(sub)]
    if named is not None and split_named(named) != split:
        matching = [sub for sub in subfolders if nfc(sub.name) == nfc(named)]
    else:
        matching = [sub for sub in subfolders if sub.name == named]
        matching = matching or [sub for sub in subfolders if sub.name.lower() in _USUAL.get(split, ())]
        matching = matching or [sub for sub in subfolders if split_named(sub.name) == split]
    if len(matching) > 1:
        raise UserError(f"{field}: {folder} has {listed([repr(sub.name) for sub in matching])}; keep one of them")
    if named is not None and not matching:
        raise UserError(f"{field}: {folder} has no folder {named!r} with class folders in it")
    return matching[0] if matching else None


def _subfolders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not is_system_folder(entry.name))


def _read_classes(field: str, folder: Path, skipped: list[str], notes: list[str] | None = None) -> dict[str, list[str]]:
    """Return the paths of images relative to `folder`, sorted, by class; add a line for each omission to `skipped`.

    With `notes`, which is for classes that are to be learned, the layout of the folders is checked first.
    """
    _list_system_folders(folder, skipped)
    subfolders = []
    is_run = made_by_launcher(folder) == "a run dir"
    for sub in _subfolders(folder):
        if own := f"of the run in {folder.name}" if is_run and sub.name in OF_A_RUN else made_by_launcher(sub):
            skipped.append(f"{one_line(str(sub))}{os.sep} ({own})")
        else:
            subfolders.append(sub)
    if notes is not None:
        copies = copies_inside(subfolders)
        skipped.extend(f"{one_line(str(sub))}{os.sep} (holds the class folders once more)" for sub in copies)
        subfolders = [sub for sub in subfolders if sub not in copies]
        check_layout(field, folder, subfolders, notes)
    classes: dict[str, list[str]] = {}
    others: list[str] = []
    for sub in sorted(subfolders, key=lambda sub: nfc(sub.name)):
        images = _images_below(sub, folder, others, skipped)
        classes[nfc(sub.name)] = sorted([*classes.get(nfc(sub.name), ()), *images])
    loose = [path.name for path in sorted(folder.iterdir()) if _is_image(path.name) and path.is_file()]
    if not classes:
        has = f"{plural(len(loose), 'image', spec='')} but no class folders" if loose else "no class folders"
        raise UserError(f"{field}: {folder} has {has}; expected {folder.name}/<class>/<image>")
    skipped.extend(f"{one_line(path)} (not an image)" for path in others)
    skipped.extend(f"{one_line(str(folder / name))} (not in a class folder)" for name in loose)
    empty = [name for name, paths in classes.items() if not paths]
    if len(empty) == len(classes):
        holding = f"holding {_types(others)}" if others else "all empty"
        raise UserError(f"{field}: no images in {folder} ({plural(len(classes), 'class folder', spec='')}, {holding})")
    if empty:
        shown = listed([repr(name) for name in empty])
        raise UserError(
            f"{field}: {len(empty)} class folder(s) of {folder} without an image: {shown}; fill or remove them"
        )
    return classes


def _types(files: Sequence[str]) -> str:
    """Return the number of files with a count of their suffixes: "6 files of other types (.dcm 4, .npy 2)"."""
    endings = Counter(os.path.splitext(file)[1].lower() or "no ending" for file in files)  # noqa: PTH122
    shown = listed([f"{end} {n}" for end, n in endings.most_common()])
    return f"{plural(len(files), 'file of another type', 'files of other types', spec='')} ({shown})"


def _images_below(class_folder: Path, base: Path, others: list[str], skipped: list[str]) -> list[str]:
    images = []
    prefix = len(os.path.join(base, ""))  # noqa: PTH118 - Path objects for a million files take seconds
    for at, folders, files in _walk(class_folder):
        _list_system_folders(at, skipped, folders)
        folders[:] = [name for name in folders if not is_system_folder(name)]
        for name in files:
            path = f"{at}{os.sep}{name}"
            if _is_image(name):
                images.append(path[prefix:])
            elif not name.startswith("."):
                others.append(path)
    return images


def _list_system_folders(at: str | Path, skipped: list[str], names: Sequence[str] | None = None) -> None:
    """Add a line to `skipped` for each hidden or system folder in a folder that contains images."""
    if names is None:
        with os.scandir(at) as entries:
            names = [entry.name for entry in entries if is_system_folder(entry.name) and entry.is_dir()]
    for name in sorted(filter(is_system_folder, names)):
        path = os.path.join(at, name)  # noqa: PTH118
        count = sum(_is_image(file) for _, _, files in os.walk(path) for file in files)
        if count:
            kind = "hidden" if name.startswith(".") else "system"
            skipped.append(f"{one_line(path)}{os.sep} ({kind} folder, {plural(count, 'image')})")


def _walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk like os.walk, but follow links without going round in circles, and raise OSError for unreadable folders.

    Links are followed because downloaded data sets often consist of links into a cache.
    """
    for at, folders, files in os.walk(folder, onerror=_fail, followlinks=True):
        real, parent = os.path.realpath(at), os.path.realpath(os.path.dirname(at))  # noqa: PTH120
        if f"{parent}/".startswith(f"{real}/"):
            folders.clear()
        else:
            yield at, folders, files


def _fail(error: OSError) -> None:
    raise error  # os.walk by default skips folders that it may not read


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def _split(folder: Path, names: tuple[str, ...], classes: dict[str, list[str]]) -> Split:
    counts = [len(classes.get(name, ())) for name in names]
    paths = [path for name in names for path in classes.get(name, ())]
    return Split(images=FileImages(folder, paths), targets=np.repeat(np.arange(len(names), dtype=np.int64), counts))
