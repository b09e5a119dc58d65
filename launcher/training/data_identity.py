"""The identity of data: the content and the target of every sample, in order, and the names of the targets.

Their location does not matter: a folder that was moved, or copied to a node's own disk, holds the same data.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from launcher.console import Reporter
from launcher.data.digests import Digests, content_digests
from launcher.errors import UserError
from launcher.files import write_atomic
from launcher.recipe.abilities import IsPreparedCopy, KnowsSourceDigests
from launcher.recipe.protocols import Split, Splits
from launcher.text import listed, one_line, plural

FILE = "data.npz"
NAMED = 3
"""Number of images that a line names; the rest are counted."""


@dataclasses.dataclass(frozen=True)
class SplitIdentity:
    """The identity of a split, sample by sample."""

    digests: Digests
    """uint8 (N, 16): digests of the sources that the images are read from."""
    targets: np.ndarray[Any, np.dtype[Any]]
    samples: tuple[str, ...]
    """The last two components of each image's name, for messages."""


@dataclasses.dataclass(frozen=True)
class DataIdentity:
    """The identity of the data of a run."""

    names: tuple[str, ...]
    """Names of the classes, labels or targets."""
    prepared_copy: str | None
    """The id of the prepared copy that the pixels are taken from, if any."""
    train: SplitIdentity
    val: SplitIdentity

    def save(self, folder: Path) -> None:
        """Write `data.npz`. Raise OSError if it cannot be written."""
        arrays: dict[str, Any] = {"names": _packed(self.names), "copy": _packed((self.prepared_copy or "",))}
        for name, split in (("train", self.train), ("val", self.val)):
            arrays |= {f"{name}_digests": split.digests, f"{name}_targets": split.targets}
            arrays[f"{name}_samples"] = _packed(split.samples)
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)
        write_atomic(folder / FILE, content.getvalue())

    @classmethod
    def load(cls, folder: Path) -> DataIdentity:
        """Read `data.npz`. Raise UserError if it is missing or damaged."""
        try:
            # Read into memory first, because numpy leaves a damaged file open.
            with np.load(io.BytesIO((folder / FILE).read_bytes()), allow_pickle=False) as stored:
                splits = [
                    SplitIdentity(
                        np.asarray(stored[f"{name}_digests"]),
                        np.asarray(stored[f"{name}_targets"]),
                        _unpacked(stored[f"{name}_samples"]),
                    )
                    for name in ("train", "val")
                ]
                return cls(_unpacked(stored["names"]), _unpacked(stored["copy"])[0] or None, *splits)
        except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds of exceptions
            raise UserError(f"{folder / FILE}: cannot be read ({type(error).__name__}: {error})") from error


def identify(splits: Splits, memory: Path, threads: int, report: Callable[[str], None]) -> DataIdentity:
    """Hash every image; hashes of files that have not changed are taken from `memory` (see `content_digests`).

    Raise UserError for an image that cannot be read.
    """
    images = splits.train.images
    return DataIdentity(
        splits.names,
        images.copy_id if isinstance(images, IsPreparedCopy) else None,
        _identity_of(splits.train, memory, threads, report),
        _identity_of(splits.val, memory, threads, report),
    )


def _identity_of(split: Split, memory: Path, threads: int, report: Callable[[str], None]) -> SplitIdentity:
    samples = tuple("/".join(Path(split.images.name(index)).parts[-2:]) for index in range(len(split)))
    made_of = split.images.source_digests if isinstance(split.images, KnowsSourceDigests) else None
    digests = made_of if made_of is not None else _hashed(split, memory, threads, report)
    return SplitIdentity(digests, split.targets, samples)


def _hashed(split: Split, memory: Path, threads: int, report: Callable[[str], None]) -> Digests:
    steps, count = content_digests(split.images, memory, threads), len(split)
    reporter = Reporter(count, lambda done, _: f"hashing the images: {done:,} of {count:,}", report, seconds=5.0)
    try:
        while True:
            if done := next(steps):
                reporter.update(done)
    except StopIteration as stop:
        digests: Digests = stop.value
        return digests
    except OSError as error:
        raise UserError(f"data: {error.filename or error}: cannot be read ({error.strerror or error})") from error


def seen_before(
    then: DataIdentity, split: Split, memory: Path, threads: int, report: Callable[[str], None]
) -> str | None:
    """Report how many images of a split have the same content as images that a run trained or validated on.

    Return None if there are none. Raise UserError for a file that cannot be read.
    """
    digests = list(map(bytes, _identity_of(split, memory, threads, report).digests))
    known = (("trained", set(map(bytes, then.train.digests))), ("validated", set(map(bytes, then.val.digests))))
    counts = [(sum(digest in of for digest in digests), use) for use, of in known]
    uses = " and ".join(f"{use} on {count:,}" for count, use in counts if count)
    these = f"{'this' if len(split) == 1 else 'these'} {plural(len(split), 'image')}"
    return f"the run has {uses} of {these} (the same content)" if uses else None


def changes(then: DataIdentity, now: DataIdentity) -> list[str]:
    """Return one line for each difference between the data then and now; an empty list if they are the same."""
    lines = []
    if then.names != now.names:
        lines.append(f"names: {_named(then.names)} then, {_named(now.names)} now")
    if then.prepared_copy != now.prepared_copy:
        lines.append(f"prepared copy: {then.prepared_copy or 'none'} then, {now.prepared_copy or 'none'} now")
    for title, before, after in (("training", then.train, now.train), ("validation", then.val, now.val)):
        lines += _changes_of_split(title, before, after)
    return lines


def _changes_of_split(title: str, then: SplitIdentity, now: SplitIdentity) -> list[str]:
    if len(then.digests) != len(now.digests):
        before, after = set(map(bytes, then.digests)), set(map(bytes, now.digests))
        new = [name for name, digest in zip(now.samples, now.digests, strict=True) if bytes(digest) not in before]
        gone = [name for name, digest in zip(then.samples, then.digests, strict=True) if bytes(digest) not in after]
        detail = "; ".join(f"{what}: {_named(names)}" for what, names in (("new", new), ("gone", gone)) if names)
        counts = f"{title}: {plural(len(then.digests), 'image', spec='')} then, {len(now.digests)} now"
        return [f"{counts} ({detail})" if detail else counts]
    lines = []
    moved = (then.digests != now.digests).any(axis=1)
    if moved.any():
        names = [now.samples[index] for index in np.flatnonzero(moved)]
        same_images = sorted(map(bytes, then.digests)) == sorted(map(bytes, now.digests))
        one = len(names) == 1
        what = "are in another order" if same_images else f"{'has' if one else 'have'} other content"
        lines.append(f"{title}: {len(names)} of {plural(len(moved), 'image', spec='')} {what}: {_named(names)}")
    if then.targets.shape != now.targets.shape:
        lines.append(f"{title}: targets of shape {then.targets.shape} then, {now.targets.shape} now")
    elif (differing := (then.targets != now.targets).reshape(len(now.targets), -1).any(axis=1)).any():
        names = [now.samples[index] for index in np.flatnonzero(differing)]
        lines.append(
            f"{title}: {len(names)} of {plural(len(differing), 'image', spec='')} "
            f"{'has' if len(names) == 1 else 'have'} other targets: {_named(names)}"
        )
    return lines


def _named(names: tuple[str, ...] | list[str]) -> str:
    return listed([one_line(name) for name in names], most=NAMED)


def _packed(names: tuple[str, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return texts as the bytes of a JSON list, because an array of strings would make all as wide as the longest.

    The JSON is in ASCII, because names need not be valid text.
    """
    return np.frombuffer(json.dumps(list(names)).encode("ascii"), dtype=np.uint8)


def _unpacked(packed: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[str, ...]:
    return tuple(str(name) for name in json.loads(packed.tobytes().decode("ascii")))
