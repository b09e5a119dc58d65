"""What stored features depend on, as one hash: whatever changes them gives another name, so a stale hit cannot be."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import launcher.recipe
from launcher.recipe.data.decoding import encoded_image
from launcher.recipe.protocols import ImageSource, Split
from launcher.recipe.serialization import to_json
from launcher.training.features.cut import Cut
from launcher.training.features.records import Layout
from launcher.training.frozen import fingerprints

_RECIPE = Path(launcher.recipe.__file__).parent
FORMAT = 1
"""To be raised when the same inputs give other rows."""
CHUNK = 256
"""Images whose hashes are computed between two looks at the rest of the world."""

Digests = np.ndarray[Any, np.dtype[np.uint8]]


def content_digests(images: ImageSource, memory: Path, threads: int) -> Generator[int, None, Digests]:
    """uint8 (N, 16): a hash of what each image is read from; of its pixels, where a source does not tell.

    Returned in the end; on the way the number of images that are done is yielded now and then, for reading a million
    takes long. Of files that have not changed since (size, times of content and of inode, device and inode), hashes are
    taken from `memory`, a folder. Raises OSError for a file that cannot be read.
    """
    file = getattr(images, "file", None)
    if file is not None and file(0) is not None:
        return (yield from _remembered([os.fspath(file(index)) for index in range(len(images))], memory, threads))
    return (yield from _in_threads(lambda index: _of_image(images, index), len(images), threads))


def _remembered(paths: Sequence[str], memory: Path, threads: int) -> Generator[int, None, Digests]:
    count = len(paths)
    name = hashlib.blake2b("\0".join(paths).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    file = memory / f"{name}.npz"
    stats = np.zeros((count, len(_stat(paths[0]))), dtype=np.int64)
    for index, path in enumerate(paths):
        stats[index] = _stat(path)
        if index % CHUNK == 0:
            yield 0
    known, digests = np.zeros(count, dtype=bool), np.zeros((count, 16), dtype=np.uint8)
    try:
        with np.load(file, allow_pickle=False) as before:
            known = (before["stats"] == stats).all(axis=1)
            digests[known] = before["digests"][known]
    except (OSError, ValueError, KeyError):
        pass
    unknown = np.flatnonzero(~known)
    if len(unknown):
        digests[unknown] = yield from _in_threads(lambda n: _content(Path(paths[unknown[n]])), len(unknown), threads)
        draft = file.with_name(f".{file.stem}.{os.getpid()}.npz")
        try:
            memory.mkdir(parents=True, exist_ok=True)
            np.savez(draft, stats=stats, digests=digests)
            draft.replace(file)
        except OSError:  # what cannot be remembered is hashed again the next time
            draft.unlink(missing_ok=True)
    return digests


def _stat(path: str) -> tuple[int, ...]:
    found = Path(path).stat()
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_dev, found.st_ino


def _in_threads(digest: Callable[[int], bytes], count: int, threads: int) -> Generator[int, None, Digests]:
    found = b""
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for begin in range(0, count, CHUNK):
            found += b"".join(pool.map(digest, range(begin, min(begin + CHUNK, count))))
            yield min(begin + CHUNK, count)
    return np.frombuffer(found, dtype=np.uint8).reshape(count, 16)


def _content(content: Path | bytes) -> bytes:
    return hashlib.blake2b(content.read_bytes() if isinstance(content, Path) else content, digest_size=16).digest()


def _of_image(images: ImageSource, index: int) -> bytes:
    if (encoded := encoded_image(images, index)) is not None:
        return _content(encoded)
    image = images.read(index)
    digest = hashlib.blake2b(image.tobytes(), digest_size=16)
    about = image.mode, image.size, image.getpalette(), image.info.get("transparency"), dict(image.getexif())
    digest.update(repr(about).encode())
    return digest.digest()


def prefix_identity(cut: Cut, layout: Layout, precision: str, device: str) -> str:
    """What turns pictures into rows: operations, weights, precision, and the versions of the libraries."""
    kinds = {type(module) for module in cut.prefix.modules()}
    facts = {
        "format": FORMAT,
        "operations": cut.operations,
        "weights": fingerprints(cut.prefix),
        "crossing": [(tensor.shape, str(given)) for tensor, given in zip(cut.crossing, layout.given, strict=True)],
        "stored": str(layout.dtype),
        "computed": [precision, device],
        "code": _sources(kinds),
        "versions": _versions("torch", "torchvision", "timm"),
    }
    return _hash(facts)


def features_name(prefix: str, split: Split, digests: Digests, transform: str) -> str:
    """The name of the rows of a split, seen through a transform (`transform_identity`)."""
    facts = [prefix, transform, len(split), hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()]
    return _hash(facts)


def transform_identity(preprocessing: Any, augment: Any | None, seed: int, view: int) -> str:
    """A transform that draws from (seed, view, sample); of None for the evaluation transform, which draws nothing."""
    facts: dict[str, Any] = {
        "preprocessing": repr(preprocessing),
        "decoding": _hashes([*_RECIPE.glob("data/*.py"), _RECIPE / "transforms.py"]),
        "versions": _versions("torch", "torchvision", "pillow"),
    }
    if augment is not None:
        facts |= {"augment": to_json(augment), "code": _sources([type(augment)]), "drawn": [seed, view]}
    return _hash(facts)


def _sources(kinds: Iterable[type]) -> list[str]:
    """Hashes of the files in which classes are written; those of libraries go by their versions."""
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "torchvision", "timm")]
    return _hashes({Path(inspect.getfile(kind)) for kind in own if kind.__module__ in sys.modules})


def _hashes(files: Iterable[Path]) -> list[str]:
    return sorted(_content(file).hex() for file in files)


def _versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hash(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
