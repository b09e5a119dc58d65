"""Image sources: images by index, with pixels or paths held in arrays.

Reading a Python object writes its reference count, and each page touched in this way is copied into each worker
process: lists of a million paths cost gigabytes over a few dozen workers (pytorch/pytorch#13246). Reading an array
writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from launcher.data.decoding import Decoder, check_regular, open_image
from launcher.data.names import in_list
from launcher.errors import UserError
from launcher.recipe.abilities import HoldsImageFiles
from launcher.recipe.protocols import ImageSource
from launcher.text import listed, plural

if TYPE_CHECKING:
    import datasets


class PackedStrings:
    """Strings in one buffer of bytes with offsets; in a fixed-width array all would be as wide as the longest."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]  # file names need not be valid text
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(piece) for piece in encoded], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        start = self._ends[index - 1] if index else 0
        return os.fsdecode(self._bytes[start : self._ends[index]].tobytes())


class FileImages:
    """Image files, given by paths relative to a folder or absolute."""

    def __init__(self, folder: str | Path, paths: Iterable[str]) -> None:
        self._folder = str(folder)
        self._paths = PackedStrings(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Image.Image:
        return open_image(self.name(index))

    def encoded(self, index: int) -> bytes | None:
        try:
            check_regular(self.file(index))
            return self.file(index).read_bytes()
        except OSError:  # `read` says what is wrong
            return None

    def file(self, index: int) -> Path:
        """Return the path of the image file."""
        return Path(self._folder, self._paths[index])

    def name(self, index: int) -> str:
        return str(Path(self._folder, self._paths[index]))


class ArrayImages:
    """Images that are already pixels: uint8 (N, H, W) grey or (N, H, W, 3) RGB."""

    def __init__(self, title: str, pixels: npt.NDArray[np.uint8]) -> None:
        self._title = title
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> Image.Image:
        return Image.fromarray(self._pixels[index])

    def name(self, index: int) -> str:
        return f"{self._title}[{index}]"


class TableImages:
    """Images in a column of an Arrow table, whose cells are bytes or have "bytes" and "path"."""

    def __init__(self, title: str, table: datasets.Dataset, column: str, root: Path | None = None) -> None:
        """Keep the column alone; `root` is the folder that the paths of cells without bytes are relative to."""
        self._title, self._root = title, root
        self._table = table.select_columns([column])
        self._column = column

    def __len__(self) -> int:
        return len(self._table)

    def read(self, index: int) -> Image.Image:
        content, path = self._cell(index)
        # Without bytes, the path is a file's; with them, it is only the name that the file once had.
        file = Path(self._root or "", path) if content is None and path else None
        return open_image(file or content or b"", name=self._name(index, path))

    def encoded(self, index: int) -> bytes | None:
        return self._cell(index)[0]

    def name(self, index: int) -> str:
        return self._name(index, self._cell(index)[1])

    def _name(self, index: int, path: str | None) -> str:
        if path and Path(path).is_absolute():
            return path
        return f"{self._title}[{index}]" + (f" ({path})" if path else "")

    def _cell(self, index: int) -> tuple[bytes | None, str | None]:
        cell: Any = self._table[index][self._column]
        if not isinstance(cell, dict):
            return cell, None
        return cell.get("bytes"), cell.get("path")


class Subset:
    """Some images of a source, given by their indices in it, under the source's names."""

    def __init__(self, images: ImageSource, indices: npt.NDArray[np.int64]) -> None:
        self._images = images
        self._indices = indices
        self._decoder = Decoder(images)
        self._files = images if isinstance(images, HoldsImageFiles) else None

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> Image.Image:
        return self._images.read(int(self._indices[index]))

    def encoded(self, index: int) -> bytes | None:
        return self._decoder.encoded(int(self._indices[index]))

    def file(self, index: int) -> Path | None:
        """Return the path of the image file, or None if the image is not in a file of its own."""
        return None if self._files is None else self._files.file(int(self._indices[index]))

    def name(self, index: int) -> str:
        return self._images.name(int(self._indices[index]))


def check_files(
    root: Path,
    paths: list[str],
    field: str,
    where: str,
    row_name: Callable[[int], str],
    advice: str = "; data.root says where the paths start from",
) -> None:
    """Raise UserError for paths in `where` without a file; they are looked for, and mended, as in `missing_files`."""
    if missing := missing_files(root, paths):
        shown = listed([f"{paths[row]} ({row_name(row)})" for row in missing])
        raise UserError(
            f"{field}: {len(missing)} of {plural(len(paths), 'image', spec='')} named in {where} "
            f"{'is' if len(missing) == 1 else 'are'} missing: {shown}; looked in {root}{advice}"
        )


def missing_files(root: Path, paths: list[str]) -> list[int]:
    """Return the rows whose file is missing; in `paths`, replace a path in another Unicode form by the one on disk.

    Each folder is listed only once, because on NFS asking for a million files takes minutes.
    """
    listings: dict[str, set[str]] = {}
    missing = []
    for row, path in enumerate(paths):
        folder, name = os.path.split(os.path.join(root, path))  # noqa: PTH118
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()  # noqa: PTH112, PTH208
        if name not in listings[folder] and not os.path.isfile(os.path.join(folder, name)):  # noqa: PTH118, PTH113
            same = None if path.isascii() else _in_any_form(root, path)
            if same is None:
                missing.append(row)
            else:
                paths[row] = same
    return missing


def _in_any_form(root: Path, path: str) -> str | None:
    """Return the path below `root` that equals `path` in any Unicode form, or None if there is none."""
    at, parts = Path(root), Path(path).parts
    there = []
    for part in parts:
        names = os.listdir(at) if at.is_dir() else []  # noqa: PTH208 - names are enough
        name = part if part in ("/", "..") else in_list(part, names)
        if name is None:
            return None
        at = at / name
        there.append(name)
    return str(Path(*there))
