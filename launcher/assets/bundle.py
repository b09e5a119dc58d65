"""What a recipe needs from the network, and the folder that it was brought into for machines without one.

`launcher.assets.fetch` fills the folder. A run that is told of it (--assets, LAUNCHER_ASSETS) takes published weights
and data sets from there and from nowhere else: no cache, no download, no random weights instead.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, TypeGuard, runtime_checkable

from launcher.errors import Problems, UserError
from launcher.recipe.recipe import Recipe
from launcher.text import readable_size

VARIABLE = "LAUNCHER_ASSETS"
MANIFEST = "MANIFEST.json"
FORMAT = 1
HASHED_AT_ONCE = 8
"""Files. One core hashes 1.06 GB/s (measured, an AMD EPYC with SHA instructions), so disks decide."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asset:
    """Something from the network, or from a place that another machine may not have (a cache, a Python package).

    A part of a recipe names what it needs where it is a `NamesAssets`.
    """

    key: str
    """What it is: the same wherever it lies, and for all recipes that need it."""
    field: str
    """The words of the recipe that ask for it: "backbone.weights='DEFAULT'"."""
    what: str
    """For people: "ResNet50_Weights.IMAGENET1K_V2"."""
    bring: Callable[[Path, Path], str]
    """Write its files below the first folder, at the paths that they are to have in the assets; the second folder is
    for scratch. Returns where it came from. Raises UserError, or whatever a library says."""
    size: Callable[[], int | None] = lambda: None
    """Bytes to come, where its server tells."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPath:
    """A file or folder of the user's own that a recipe names. It stays where it is."""

    field: str
    path: Path


@runtime_checkable
class NamesAssets(Protocol):
    """A part of a recipe that says what it needs to be there."""

    def assets(self) -> list[Asset | OwnPath]:
        """Return it without asking the network. Raises UserError for what cannot be had."""
        ...


def names_assets(part: object) -> TypeGuard[NamesAssets]:
    """Return whether a part says what it needs; a field of a user's own part may have the same name."""
    return isinstance(part, NamesAssets) and callable(part.assets)


def needed(recipe: Recipe) -> list[Asset | OwnPath]:
    """What the parts of a recipe need to be there. Raises UserError with all that is wrong with what they ask for."""
    found: dict[tuple[str, str], Asset | OwnPath] = {}
    problems = Problems()
    for field in dataclasses.fields(recipe):
        part = getattr(recipe, field.name)
        if not names_assets(part):
            continue
        with problems.collected():
            for thing in part.assets():
                name = (thing.key, "") if isinstance(thing, Asset) else (thing.field, str(thing.path))
                found.setdefault(name, thing)
    problems.raise_if_any()
    return list(found.values())


def assets_folder() -> Path | None:
    """The folder that all published weights and data sets are to be taken from; None: from the usual places."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def use_assets(folder: Path) -> None:
    """Take everything from `folder` from here on, in the processes that this one starts, too.

    To be called before torch, timm or datasets are imported: parts of the user's own may call these libraries, and some
    read their settings once. Raises UserError where nothing was ever fetched into `folder`.
    """
    folder = folder.expanduser().absolute()
    Assets(folder)
    os.environ.update(
        {
            VARIABLE: str(folder),
            "TORCH_HOME": str(folder / "torch"),
            "HF_HUB_CACHE": str(folder / "huggingface" / "hub"),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
        }
    )


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of an asset as the manifest describes it."""

    path: Path
    bytes: int
    sha256: str

    def absent(self) -> str | None:
        """Why the file cannot be the one that was fetched, seen without reading it; None where it may be."""
        if not self.path.is_file():
            return "is not there"
        there = self.path.stat().st_size
        return None if there == self.bytes else f"is damaged: {there:,} bytes, where {self.bytes:,} were fetched"

    def damaged(self) -> str | None:
        """Why the file is not the one that was fetched, after reading it; None where it is."""
        if told := self.absent():
            return told
        try:
            digest = sha256_of(self.path)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        if digest == self.sha256:
            return None
        return f"is damaged: its SHA-256 is {digest[:16]}..., and {self.sha256[:16]}... was fetched"


class Assets:
    """A folder of fetched assets, as its manifest says. Raises UserError where there is none that can be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / MANIFEST
        if not folder.is_dir():
            raise UserError(f"--assets {folder}: {'is a file' if folder.exists() else 'no such folder'}; {_WANTED}")
        if not file.is_file():
            raise UserError(f"--assets {folder}: has no {MANIFEST}; {_WANTED}")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            self.entries: Mapping[str, Mapping[str, Any]] = content["assets"]
            if content["format"] != FORMAT:
                raise UserError(f"--assets {folder}: {MANIFEST} is of format {content['format']}, not {FORMAT}")
            self._files = {key: tuple(self._stored(entry)) for key, entry in self.entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"--assets {folder}: {MANIFEST} is damaged ({error}); remove it, and fetch again"
            ) from error

    def _stored(self, entry: Mapping[str, Any]) -> Iterator[StoredFile]:
        for path, facts in entry["files"].items():
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{path!r} lies outside the folder")
            yield StoredFile(self.folder / path, int(facts["bytes"]), str(facts["sha256"]))

    def files(self, asset: Asset) -> tuple[StoredFile, ...] | None:
        """The files of an asset; None where it was never fetched."""
        return self._files.get(asset.key)

    def lacks(self, asset: Asset) -> str | None:
        """What of an asset is not there, in words that end a line; None where all is. Reads none of its files."""
        files = self.files(asset)
        if files is None:
            return f"{asset.what} is not among the assets in {self.folder}"
        return next((f"{file.path} {told}" for file in files if (told := file.absent())), None)

    def damage(self, assets: Iterable[Asset]) -> dict[str, str]:
        """Key of each asset of which a file is missing or not what was fetched -> what is wrong, with the first file.

        Reads every byte of the assets.
        """
        pairs = [(asset.key, file) for asset in assets for file in self.files(asset) or ()]
        wrong: dict[str, str] = {}
        with concurrent.futures.ThreadPoolExecutor(HASHED_AT_ONCE) as pool:  # hashing leaves Python's lock alone
            for (key, file), told in zip(pairs, pool.map(lambda pair: pair[1].damaged(), pairs), strict=True):
                if told:
                    wrong.setdefault(key, f"{file.path} {told}")
        return wrong


_WANTED = "wanted: a folder that 'python -m launcher fetch RECIPE --to DIR' has filled"


def fetch_command(folder: Path) -> str:
    """The command that brings what is missing, as far as it is known where nobody knows the recipe's name."""
    return f"python -m launcher fetch RECIPE --to {shlex.quote(str(folder))}"


def verify_assets(recipe: Recipe, tell: Callable[[str], None]) -> None:
    """Read all that the recipe needs of the assets in use, and compare it with what was fetched.

    Raises UserError with a line for each thing that is missing or damaged. Nothing where no assets are in use.
    """
    if (folder := assets_folder()) is None:
        return
    store = Assets(folder)
    wanted = [thing for thing in needed(recipe) if isinstance(thing, Asset)]
    files = [file for asset in wanted for file in store.files(asset) or ()]
    if files:
        total = readable_size(sum(file.bytes for file in files))
        tell(f"verifying {len(files)} file{'s' if len(files) > 1 else ''} of the assets in {folder}, {total}")
    problems = []
    damage = store.damage(wanted)
    for asset in wanted:
        if told := store.lacks(asset) or damage.get(asset.key):
            problems.append(f"{asset.field}: {told}; bring it, where there is network: {fetch_command(folder)}")
    if problems:
        raise UserError(*problems)


def sha256_of(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
