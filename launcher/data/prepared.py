"""Prepared copies: a data set's images as plain pixels of a smaller size, and the check that a copy fits a recipe.

    manifest.json                      size and number of the stored images, and those that could not be read
    train.pixels  val.pixels           RGB, 8 bits: one image after another, each row by row
    train.index.npy  val.index.npy     for each sample: start and size of its pixels, and what they were made from
    train.targets.npy  val.targets.npy
    train.names.json  val.names.json

Plain pixels take 281 kB per image, a JPEG of quality 95 takes 41 kB (500x375 photographs, shorter side 259 px); but the
JPEG would differ by 2.2 of 256 levels in the mean, and its decoding alone would take as long as all that is done to
plain pixels.

A copy is used only if it was made from the files that the data part names now, so it is never stale: a file whose size
and time of change are the same is taken for unchanged, and of any other file the content is compared.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from launcher.data.decoding import Decoder
from launcher.data.digests import Digests, content_digest, image_digest
from launcher.data.duplicates import repeat_notes
from launcher.data.image_check import Broken, on_bad_image_of, verified
from launcher.errors import UserError
from launcher.files import expanded
from launcher.recipe.abilities import KnowsShortSide
from launcher.recipe.protocols import ImageSource, Preprocessing, Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.text import listed, one_line, plural, readable_size

FORMAT = 1
NAMES = ("train", "val")
HASH_BYTES = 16
ROW = np.dtype(
    [
        ("begin", "<i8"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("file_bytes", "<i8"),
        ("file_changed_ns", "<i8"),
        ("source_hash", "u1", (HASH_BYTES,)),
        ("pixels_hash", "u1", (HASH_BYTES,)),
    ]
)
"""Index row of a sample: its pixels (height 0 if it could not be read), and the file or content they were made from."""


@dataclasses.dataclass(frozen=True)
class Need:
    """Lengths of the shorter side of the images, in pixels, that a recipe's transforms need."""

    train: int
    val: int

    def __str__(self) -> str:
        return f"{self.train} px for training and {self.val} px for validation"


def need_of(recipe: Recipe, preprocessing: Preprocessing) -> Need:
    """Return the shorter sides that a recipe needs.

    For validation this is the size to which the evaluation transform resizes; for training, the size that the
    augmentation states (`short_side`), or else the larger of the image size and the size for validation.
    """
    val = preprocessing.resize_size
    if isinstance(recipe.augment, KnowsShortSide):
        return Need(int(recipe.augment.short_side(preprocessing)), val)
    return Need(max(val, preprocessing.image_size), val)


@dataclasses.dataclass(frozen=True)
class Copy:
    """A prepared copy as its manifest describes it."""

    folder: Path
    kept: Need
    """Lengths of the shorter side of the stored images; smaller images are stored as they are."""
    enough_for: Need
    """Lengths of the shorter side that the recipe needs for which the copy was made."""
    samples: tuple[int, int]
    size_bytes: int
    broken: Broken
    index_hashes: tuple[str, str]

    def __str__(self) -> str:
        train, val = self.samples
        size = readable_size(self.size_bytes)
        return f"{train:,} training and {plural(val, 'validation image')}, {size} in {self.folder}"

    @property
    def id(self) -> str:
        """Identifier that changes with anything that is stored."""
        return hashlib.blake2b(repr((self.kept, self.index_hashes)).encode(), digest_size=8).hexdigest()

    def rows(self, name: str) -> npt.NDArray[Any]:
        """Return the index of "train" or "val". Raises UserError if the folder's files do not match the manifest."""
        file = self.folder / f"{name}.index.npy"
        try:
            rows: npt.NDArray[Any] = np.load(file, allow_pickle=False)
            size = (self.folder / f"{name}.pixels").stat().st_size
        except (OSError, ValueError) as error:
            raise UserError(f"{self.folder}: the prepared copy is damaged ({error}); prepare it again") from error
        expected = bytes_of(rows) if rows.dtype == ROW else -1
        if content_digest(rows.tobytes()).hex() not in self.index_hashes or size != expected:
            raise UserError(f"{self.folder}: the prepared copy is damaged ({name}.*); prepare it again")
        return rows


def bytes_of(rows: npt.NDArray[Any]) -> int:
    """Return the number of bytes that the pixels of all samples of an index take."""
    return int(3 * (rows["height"].astype(np.int64) * rows["width"]).sum())


def read_copy(folder: Path) -> Copy:
    """Read the manifest of a prepared copy. Raises UserError if there is no prepared copy in the folder."""
    folder = expanded(folder).absolute()
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(f"{folder}: a prepared copy of another version of this package; prepare it again")
        parts = [manifest["train"], manifest["val"]]
        return Copy(
            folder=folder,
            kept=Need(*(part["short_side"] for part in parts)),
            enough_for=Need(*(part["enough_for"] for part in parts)),
            samples=(parts[0]["samples"], parts[1]["samples"]),
            size_bytes=parts[0]["bytes"] + parts[1]["bytes"],
            broken=Broken(_pairs(parts[0]["broken"]), _pairs(parts[1]["broken"])),
            index_hashes=(parts[0]["index_hash"], parts[1]["index_hash"]),
        )
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: no prepared copy there; make one: python -m launcher prepare RECIPE --to DIR"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: the manifest of the prepared copy cannot be read ({error})") from error


def _pairs(broken: Any) -> tuple[tuple[int, str], ...]:
    return tuple((int(index), str(why)) for index, why in broken)


def check_fits(copy: Copy, recipe: Recipe, preprocessing: Preprocessing) -> None:
    """Raise UserError if the recipe's transforms need larger images than the copy has."""
    need, has = need_of(recipe, preprocessing), copy.enough_for
    problems = [
        f"{copy.folder}: {what} images are prepared for transforms that need a shorter side of {old} px, this recipe "
        f"needs {new} px; prepare them again into another folder"
        for what, old, new in (("training", has.train, need.train), ("validation", has.val, need.val))
        if new > old
    ]
    if problems:
        raise UserError(*problems)


def check_current(copy: Copy, splits: Splits) -> None:
    """Raise UserError if the copy was made from other samples, or from files that have changed since."""
    problems = []
    for name, split in (("train", splits.train), ("val", splits.val)):
        rows = copy.rows(name)
        names = json.loads((copy.folder / f"{name}.names.json").read_text(encoding="utf-8"))
        if len(split) != len(rows):
            problems.append(
                f"{copy.folder}: made of {plural(len(rows), f'{name} image', spec='')}, the recipe has {len(split)}"
            )
            continue
        changed = [split.images.name(i) for i in range(len(split)) if _tail(split.images.name(i)) != _tail(names[i])]
        what = "are others than it was made of (another seed?)"
        if not changed:
            changed = [split.images.name(index) for index in _changed(split.images, rows)]
            what = "changed after it was made"
        if changed:
            shown = listed([one_line(name) for name in changed], most=3)
            problems.append(f"{copy.folder}: {len(changed)} {name} image(s) {what}: {shown}")
    if problems:
        raise UserError(*(f"{problem}; prepare it again" for problem in problems))


def _tail(name: str) -> tuple[str, ...]:
    """Return the last two components of a path, which identify a sample even after the data set has been moved."""
    return Path(name).parts[-2:]


def _changed(images: ImageSource, rows: npt.NDArray[Any]) -> Iterator[int]:
    decoder = Decoder(images)
    for index, row in enumerate(rows):
        file_bytes, changed_ns = stamp_of(images, index)
        same_file = file_bytes >= 0 and (file_bytes, changed_ns) == (row["file_bytes"], row["file_changed_ns"])
        if not same_file and source_hash(decoder, index) != row["source_hash"].tobytes():
            yield index


def stamp_of(images: ImageSource, index: int) -> tuple[int, int]:
    """Return the size and time of change (ns) of the file that an image is named after, or (-1, -1) if none exists."""
    path = Path(images.name(index))
    if path.is_absolute():
        try:
            status = path.stat()
            return status.st_size, status.st_mtime_ns
        except OSError:
            pass
    return -1, -1


def source_hash(decoder: Decoder, index: int) -> bytes:
    """Return the image's digest, or zeros if it cannot be read."""
    try:
        return image_digest(decoder, index)
    except MemoryError:
        raise
    except Exception:  # a user's own source may raise anything
        return bytes(HASH_BYTES)


def with_copy(copy: Copy, recipe: Recipe, splits: Splits) -> Splits:
    """Return the splits with images read from the copy, and without those that could not be read.

    Raises UserError as `verified` does.
    """
    digests = [[row.tobytes() if row.any() else None for row in copy.rows(name)["source_hash"]] for name in NAMES]
    broken = dataclasses.replace(copy.broken, notes=tuple(repeat_notes(splits, *digests)))
    readable = verified(splits, broken, on_bad_image_of(recipe.data))
    return dataclasses.replace(
        readable, train=_prepared(copy, "train", readable.train), val=_prepared(copy, "val", readable.val)
    )


def _prepared(copy: Copy, name: str, split: Split) -> Split:
    rows = copy.rows(name)
    return Split(PreparedImages(split.images, copy, name, rows[rows["height"] > 0]), split.targets)


class PreparedImages:
    """The images of a prepared copy, under the names of their source."""

    def __init__(self, source: ImageSource, copy: Copy, name: str, rows: npt.NDArray[Any]) -> None:
        self.copy_id = copy.id
        self._source, self._file, self._rows = source, copy.folder / f"{name}.pixels", rows

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        return self._source.name(index)

    @property
    def source_digests(self) -> Digests:
        """Digests of the images from which the copy was made: uint8 (N, 16)."""
        return np.ascontiguousarray(self._rows["source_hash"])

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self.stored_pixels(index))

    def stored_pixels(self, index: int) -> npt.NDArray[np.uint8]:
        """Return uint8 (height, width, 3), mapped from the file.

        Raises UserError if the pixels are not as they were written.
        """
        row = self._rows[index]
        begin, height, width = int(row["begin"]), int(row["height"]), int(row["width"])
        pixels = self._mapped[begin : begin + 3 * height * width]
        # Training on a copy that the disk has damaged would go unnoticed. Compared once per process, as the 281 kB of
        # an image take half a millisecond.
        if not self._compared[index]:
            if content_digest(pixels) != row["pixels_hash"].tobytes():
                raise UserError(
                    f"{self._file.parent}: the prepared copy is damaged (the pixels of {one_line(self.name(index))}); "
                    "prepare it again"
                )
            self._compared[index] = True
        return pixels.reshape(height, width, 3)

    @functools.cached_property
    def _compared(self) -> npt.NDArray[np.bool_]:
        """Mask of the images whose pixels this process has found to be as they were written: bool (N,)."""
        return np.zeros(len(self._rows), dtype=bool)

    @functools.cached_property
    def _mapped(self) -> npt.NDArray[np.uint8]:
        # "c" (copy-on-write) leaves the file as it is; torch wants arrays that can be written.
        return np.asarray(np.memmap(self._file, dtype=np.uint8, mode="c"))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_mapped", "_compared")}
