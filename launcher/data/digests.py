"""Hashes of images' content: images with the same content are the same, wherever their files lie."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np

from launcher.data.decoding import Decoder
from launcher.files import draft_file, remove_drafts
from launcher.recipe.abilities import HoldsImageFiles
from launcher.recipe.protocols import ImageSource

CHUNK = 256
"""Number of images whose hashes are computed between two reports of progress."""

Digests = np.ndarray[Any, np.dtype[np.uint8]]


def content_digests(images: ImageSource, memory: Path, threads: int) -> Generator[int, None, Digests]:
    """Return uint8 (N, 16): a hash of each image's encoded content, or of its pixels if there is none.

    Meanwhile the number of finished images is yielded from time to time, as reading a million takes long. Hashes of
    files that have not changed since they were computed (same size, times of content and inode, device and inode) are
    taken from the folder `memory`. Raises OSError for a file that cannot be read.
    """
    if isinstance(images, HoldsImageFiles) and images.file(0) is not None:
        paths = [os.fspath(cast(Path, images.file(index))) for index in range(len(images))]
        return (yield from _remembered(paths, memory, threads))
    decoder = Decoder(images)
    return (yield from _in_threads(lambda index: image_digest(decoder, index), len(images), threads))


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
        missing = [Path(paths[int(index)]) for index in unknown]
        digests[unknown] = yield from _in_threads(lambda n: content_digest(missing[n]), len(missing), threads)
        with contextlib.suppress(OSError):  # hashes that cannot be stored are computed again next time
            memory.mkdir(parents=True, exist_ok=True)
            remove_drafts(memory)
            with draft_file(file) as stream:
                np.savez(stream, stats=stats, digests=digests)
    return digests


def _stat(path: str) -> tuple[int, ...]:
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino


def _in_threads(digest: Callable[[int], bytes], count: int, threads: int) -> Generator[int, None, Digests]:
    digests = b""
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        for begin in range(0, count, CHUNK):
            digests += b"".join(pool.map(digest, range(begin, min(begin + CHUNK, count))))
            yield min(begin + CHUNK, count)
    return np.frombuffer(digests, dtype=np.uint8).reshape(count, 16)


def content_digest(content: Path | Any) -> bytes:
    """Return the BLAKE2b hash of a file or of a bytes-like object, 16 bytes long.

    Raises OSError for a file that cannot be read.
    """
    return hashlib.blake2b(content.read_bytes() if isinstance(content, Path) else content, digest_size=16).digest()


def image_digest(decoder: Decoder, index: int) -> bytes:
    """Return the hash of one image's encoded content, or of its pixels. Raises whatever reading it raises."""
    if (encoded := decoder.encoded(index)) is not None:
        return content_digest(encoded)
    image = decoder.images.read(index)
    digest = hashlib.blake2b(image.tobytes(), digest_size=16)
    about = image.mode, image.size, image.getpalette(), image.info.get("transparency"), dict(image.getexif())
    digest.update(repr(about).encode())
    return digest.digest()
