"""Creation of a prepared copy (`prepared.py`): all images decoded and resized once, on all cores, all or nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from launcher.console import Reporter
from launcher.data.decoding import Decoder, too_narrow, why_broken
from launcher.data.digests import content_digest
from launcher.data.image_check import Broken, on_bad_image_of, verified
from launcher.data.prepared import (
    FORMAT,
    ROW,
    Copy,
    Need,
    bytes_of,
    check_current,
    check_fits,
    need_of,
    read_copy,
    source_hash,
    stamp_of,
)
from launcher.data.target_precision import build_splits
from launcher.errors import Problems, UserError
from launcher.files import draft_folder, expanded
from launcher.recipe.abilities import HasPreset
from launcher.recipe.protocols import Preprocessing, Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.transforms import shrunk
from launcher.text import plural, readable_size

SIZES_SAMPLED = 200
IN_FLIGHT = 8
"""Number of images per thread that wait to be written; one of 12 million pixels takes 36 MB while it is resized."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An image as it is stored in the copy."""

    pixels: npt.NDArray[np.uint8]
    """RGB pixels (height, width, 3); empty if the image could not be read."""
    stamp: tuple[int, int]
    source_hash: bytes
    why_broken: str | None = None


def prepare(
    recipe: Recipe, folder: Path, *, short_side: int | None, workers: int, report: Callable[[str], None]
) -> str:
    """Make a copy of a recipe's images as `make_copy` does, report how far it is, and return a line on the copy."""
    torch.set_num_threads(1)  # one image on each core
    problems = Problems()
    with problems.collected():
        splits = build_splits(recipe)
    with problems.collected():
        preprocessing = recipe.backbone.preprocessing()
    problems.raise_if_any()
    begin, total = time.monotonic(), len(splits.train) + len(splits.val)
    of_all = f"of {plural(total, 'image')}"
    reporter = Reporter(total, lambda done, left: f"{done:,} {of_all}, {left:.0f} s left", report, seconds=5.0)
    copy, was_there = make_copy(
        recipe,
        splits,
        preprocessing,
        folder,
        short_side=short_side,
        workers=workers,
        report=report,
        progress=reporter.update,
    )
    return f"{'there already' if was_there else f'done in {time.monotonic() - begin:.0f} s'}: {copy}"


def make_copy(
    recipe: Recipe,
    splits: Splits,
    preprocessing: Preprocessing,
    folder: Path,
    *,
    short_side: int | None = None,
    workers: int = 4,
    report: Callable[[str], None] = lambda line: None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Copy, bool]:
    """Return the copy in `folder`, and whether it existed before; if so, it is complete, current, and fits the recipe.

    `short_side` is the shorter side of the training images, if it is not to follow from the recipe. `report` is called
    beforehand with a line on the size of the copy, `progress` with the number of finished images.

    Raises UserError for a folder with other content, for a disk without enough space, for images that cannot be read,
    and if another process is preparing the same folder.
    """
    folder = expanded(folder).absolute()
    enough_for = need_of(recipe, preprocessing)
    kept = dataclasses.replace(enough_for, train=short_side or enough_for.train)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is no folder; give a folder that is empty or does not exist")
    if folder.exists() and any(folder.iterdir()):
        return _there_already(folder, kept, recipe, splits, preprocessing), True
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(folder, alone=True) as draft:
            _check_room(folder, estimated_bytes(splits, kept), kept, report)
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
    """Estimate the size of a copy in bytes from the sizes of up to SIZES_SAMPLED images of each split."""
    total = 0.0
    for split, side in ((splits.train, kept.train), (splits.val, kept.val)):
        picked = np.unique(np.linspace(0, len(split) - 1, min(SIZES_SAMPLED, len(split))).round().astype(int))
        sizes = []
        for index in picked.tolist():
            with contextlib.suppress(Exception):  # a broken image is reported by name when its turn comes
                width, height = split.images.read(index).size
                scale = min(1.0, side / min(width, height))
                sizes.append(3 * width * height * scale**2)
        total += float(np.mean(sizes)) * len(split) if sizes else 0.0
    return round(total)


def _check_room(folder: Path, needed: int, kept: Need, report: Callable[[str], None]) -> None:
    free = shutil.disk_usage(folder.parent).free
    report(f"shorter sides of {kept}: about {readable_size(needed)} in {folder}, {readable_size(free)} are free there")
    if needed > free:
        raise UserError(f"--to {folder}: needs about {readable_size(needed)}, {readable_size(free)} are free there")


def _there_already(folder: Path, kept: Need, recipe: Recipe, splits: Splits, preprocessing: Preprocessing) -> Copy:
    """Return the copy in the folder after a check of every stored byte.

    Raises UserError if the folder holds other files, or a copy that is damaged, out of date or of another size.
    """
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
            if content_digest(np.ascontiguousarray(content)) != row["pixels_hash"].tobytes():
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
        # The evaluation transform must find exactly its own result; a random crop is resized again, from a good source.
        is_final = name == "val" or (isinstance(recipe.augment, HasPreset) and recipe.augment.preset == "none")
        how = preprocessing if is_final else dataclasses.replace(preprocessing, interpolation="bicubic")
        side = getattr(kept, name)
        rows = np.zeros(len(split), dtype=ROW)
        with (folder / f"{name}.pixels").open("wb") as file:
            for index, stored in enumerate(_stored(split, side, how, workers)):
                if stored.why_broken is not None:
                    broken[name].append((index, stored.why_broken))
                height, width, _ = stored.pixels.shape
                hashes = [np.frombuffer(each, np.uint8) for each in (stored.source_hash, content_digest(stored.pixels))]
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
            "index_hash": content_digest(rows.tobytes()).hex(),
            "broken": broken[name],
        }
    # Raises if an image is broken and the data part does not allow that.
    verified(splits, Broken(tuple(broken["train"]), tuple(broken["val"])), on_bad_image_of(recipe.data))
    with (folder / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        _to_disk(file)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _stored(split: Split, side: int, how: Preprocessing, workers: int) -> Iterator[Stored]:
    """Yield the images in order, made in `workers` threads.

    Decoding, resizing and hashing release the interpreter lock.
    """
    images, decoder = split.images, Decoder(split.images)

    def make(index: int) -> Stored:
        # Taken before the image is read, so that a change in the meantime is noticed later.
        stamp, content_hash = stamp_of(images, index), source_hash(decoder, index)
        try:
            pixels = decoder.pixels(index)
            if why := too_narrow(pixels.shape[2], pixels.shape[1], how.resize_size):
                raise ValueError(why)
            if min(pixels.shape[1:]) > side:
                pixels = shrunk(pixels, side, how)
            return Stored(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), stamp, content_hash)
        except Exception as error:  # a user's own source may raise anything
            return Stored(np.zeros((0, 0, 3), dtype=np.uint8), stamp, content_hash, why_broken(error))

    with ThreadPoolExecutor(max_workers=max(workers, 1)) as pool:
        size = IN_FLIGHT * max(workers, 1)
        waiting = [pool.submit(make, index) for index in range(min(size, len(split)))]
        for index in range(len(split)):
            yield waiting[index % size].result()
            if index + size < len(split):
                waiting[index % size] = pool.submit(make, index + size)
