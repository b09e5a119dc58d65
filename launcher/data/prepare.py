"""Making a prepared copy (`prepared.py`): all images decoded and resized once, on all cores, in one folder or not at
all."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.data.decoding import BrokenImageError, Decoder, too_narrow
from launcher.data.image_check import Broken, on_bad_image_of, verified
from launcher.data.prepared import (
    FORMAT,
    ROW,
    Copy,
    Need,
    bytes_of,
    check_current,
    check_fits,
    gigabytes,
    hash_of,
    need_of,
    read_copy,
    source_hash,
    stamp_of,
)
from launcher.errors import UserError
from launcher.files import draft_folder
from launcher.recipe.protocols import HasPreset, Preprocessing, Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.transforms import shrunk

SIZES_SAMPLED = 200
IN_FLIGHT = 8
"""Images that wait to be written, for each thread; one of 12 million pixels takes 36 MB while it is resized."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An image as it goes into the copy."""

    pixels: npt.NDArray[np.uint8]
    """(height, width, 3); empty where it could not be read."""
    stamp: tuple[int, int]
    source_hash: bytes
    why_broken: str | None = None


def make_copy(
    recipe: Recipe,
    splits: Splits,
    preprocessing: Preprocessing,
    folder: Path,
    *,
    short_side: int | None = None,
    workers: int = 4,
    tell: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Copy, bool]:
    """The copy in `folder`, and whether it was there already; then it is whole, current, and fits the recipe.

    `short_side` is that of training images, where it is not to follow from the recipe. `tell` hears beforehand how
    large the copy will be, `progress` the number of images done. Raises UserError for a folder that holds something
    else, for a disk without room, for images that cannot be read, and where another process is at it.
    """
    folder = folder.expanduser().absolute()
    enough_for = need_of(recipe, preprocessing)
    kept = dataclasses.replace(enough_for, train=short_side or enough_for.train)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is no folder; give a folder that is empty or does not exist")
    if folder.exists() and any(folder.iterdir()):
        return _there_already(folder, kept, recipe, splits, preprocessing), True
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(folder, alone=True) as draft:
            _check_room(folder, estimated_bytes(splits, kept), kept, tell)
            _write(draft, recipe, splits, preprocessing, kept, enough_for, workers, progress)
            if folder.exists():
                folder.rmdir()
            draft.rename(folder)
    except BlockingIOError as error:
        raise UserError(f"--to {folder}: another process is preparing it; wait for it") from error
    except PermissionError as error:
        raise UserError(f"--to {folder}: cannot write there ({error.strerror}); choose another folder") from error
    except OSError as error:
        raise UserError(f"--to {folder}: {error.strerror or error}") from error
    return read_copy(folder), False


def estimated_bytes(splits: Splits, kept: Need) -> int:
    """Size of a copy, from the sizes of some of the images."""
    total = 0.0
    for split, side in ((splits.train, kept.train), (splits.val, kept.val)):
        picked = np.unique(np.linspace(0, len(split) - 1, min(SIZES_SAMPLED, len(split))).round().astype(int))
        sizes = []
        for index in picked.tolist():
            with contextlib.suppress(Exception):  # a broken one is told, by name, when its turn comes
                width, height = split.images.read(index).size
                scale = min(1.0, side / min(width, height))
                sizes.append(3 * width * height * scale**2)
        total += float(np.mean(sizes)) * len(split) if sizes else 0.0
    return round(total)


def _check_room(folder: Path, needed: int, kept: Need, tell: Callable[[str], None]) -> None:
    free = shutil.disk_usage(folder.parent).free
    tell(f"shorter sides of {kept}: about {gigabytes(needed)} in {folder}, {gigabytes(free)} are free there")
    if needed > free:
        raise UserError(f"--to {folder}: needs about {gigabytes(needed)}, {gigabytes(free)} are free there")


def _there_already(folder: Path, kept: Need, recipe: Recipe, splits: Splits, preprocessing: Preprocessing) -> Copy:
    """The copy that the folder holds, every stored byte looked at. Raises UserError for anything else."""
    if not (folder / "manifest.json").is_file():
        raise UserError(f"--to {folder}: holds other files; give a folder that is empty or does not exist")
    copy = read_copy(folder)
    check_fits(copy, recipe, preprocessing)
    if copy.kept != kept:
        raise UserError(f"--to {folder}: holds a copy with shorter sides of {copy.kept}, not {kept}; remove it first")
    check_current(copy, splits)
    for name in ("train", "val"):
        pixels = np.memmap(folder / f"{name}.pixels", dtype=np.uint8, mode="r")
        for number, row in enumerate(copy.rows(name)):
            content = pixels[row["begin"] : row["begin"] + 3 * int(row["height"]) * int(row["width"])]
            if hash_of(np.ascontiguousarray(content)) != row["pixels_hash"].tobytes():
                raise UserError(
                    f"{folder}: the pixels of {name} image {number} are damaged; remove it, prepare it again"
                )
    return copy


def _write(
    folder: Path,
    recipe: Recipe,
    splits: Splits,
    preprocessing: Preprocessing,
    kept: Need,
    enough_for: Need,
    workers: int,
    progress: Callable[[int], None],
) -> None:
    manifest: dict[str, Any] = {"format": FORMAT, "names": list(splits.names)}
    broken: dict[str, list[tuple[int, str]]] = {"train": [], "val": []}
    done = 0
    for name, split in (("train", splits.train), ("val", splits.val)):
        # The evaluation transform finds its own result; a random crop is resized once more, from a good one.
        is_final = name == "val" or (isinstance(recipe.augment, HasPreset) and recipe.augment.preset == "none")
        how = preprocessing if is_final else dataclasses.replace(preprocessing, interpolation="bicubic")
        side = getattr(kept, name)
        rows = np.zeros(len(split), dtype=ROW)
        with (folder / f"{name}.pixels").open("wb") as file:
            for index, stored in enumerate(_stored(split, side, how, workers)):
                if stored.why_broken is not None:
                    broken[name].append((index, stored.why_broken))
                height, width, _ = stored.pixels.shape
                hashes = [np.frombuffer(each, dtype=np.uint8) for each in (stored.source_hash, hash_of(stored.pixels))]
                rows[index] = (file.tell(), height, width, *stored.stamp, *hashes)
                file.write(stored.pixels.data)
                done += 1
                progress(done)
            _to_disk(file)
        np.save(folder / f"{name}.index.npy", rows, allow_pickle=False)
        np.save(folder / f"{name}.targets.npy", split.targets, allow_pickle=False)
        names = [split.images.name(index) for index in range(len(split))]
        (folder / f"{name}.names.json").write_text(json.dumps(names, indent=0), encoding="utf-8")
        manifest[name] = {
            "samples": len(split),
            "bytes": bytes_of(rows),
            "short_side": side,
            "enough_for": getattr(enough_for, name),
            "interpolation": how.interpolation,
            "index_hash": hash_of(rows.tobytes()).hex(),
            "broken": broken[name],
        }
    # Raises where an image is broken, and the data part says that it may not be.
    verified(splits, Broken(tuple(broken["train"]), tuple(broken["val"])), on_bad_image_of(recipe.data))
    with (folder / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        _to_disk(file)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _stored(split: Split, side: int, how: Preprocessing, workers: int) -> Iterator[Stored]:
    """The images in order, made in `workers` threads: decoders, resizing and hashing hold no interpreter lock."""
    images, decoder = split.images, Decoder(split.images)

    def make(index: int) -> Stored:
        # Before the image: what changes meanwhile is seen to have changed.
        stamp, content_hash = stamp_of(images, index), source_hash(decoder, index)
        try:
            pixels = decoder.pixels(index)
            if why := too_narrow(pixels.shape[2], pixels.shape[1], how.resize_size):
                raise ValueError(why)
            if min(pixels.shape[1:]) > side:
                pixels = shrunk(pixels, side, how)
            return Stored(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), stamp, content_hash)
        except MemoryError:
            raise
        except Exception as error:  # a user's own source may raise anything
            text = error.reason if isinstance(error, BrokenImageError) else str(error)
            why = " ".join(text.split()) or type(error).__name__
            return Stored(np.zeros((0, 0, 3), dtype=np.uint8), stamp, content_hash, why)

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        size = IN_FLIGHT * max(workers, 1)
        waiting = [pool.submit(make, index) for index in range(min(size, len(split)))]
        for index in range(len(split)):
            yield waiting[index % size].result()
            if index + size < len(split):
                waiting[index % size] = pool.submit(make, index + size)
