"""Assets: what a recipe needs from the network, and the folder that holds it for machines without a network.

`launcher.assets.fetch` fills the folder. A run that gets the folder (--assets, LAUNCHER_ASSETS) takes published weights
and data sets from there and nowhere else: no cache, no download, no random weights instead.
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
from launcher.files import expanded
from launcher.recipe.recipe import Recipe
from launcher.text import plural, readable_size

VARIABLE = "LAUNCHER_ASSETS"
MANIFEST = "MANIFEST.json"
FORMAT = 1
HASHED_AT_ONCE = 8
"""Number of files that are hashed at once. One core hashes 1.06 GB/s (measured on an AMD EPYC with SHA instructions),
so the disks decide."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asset:
    """Something from the network, or from a place that another machine may not have (a cache, a Python package).

    A part of a recipe names its assets if it is a `NamesAssets`.
    """

    key: str
    """Identifier of the asset: the same wherever it lies, and for all recipes that need it."""
    field: str
    """Field and value of the recipe that ask for it: "backbone.weights='DEFAULT'"."""
    what: str
    """Name of the asset for people: "ResNet50_Weights.IMAGENET1K_V2"."""
    bring: Callable[[Path, Path], str]
    """Function that writes the asset's files below the first folder, at the paths that they are to have in the assets,
    with the second folder as scratch space. It returns where they came from, and raises UserError or whatever a library
    raises."""
    size: Callable[[], int | None] = lambda: None
    """Function that returns the number of bytes to be fetched, or None if the server does not report it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnPath:
    """A file or folder of the user's own that a recipe names and that stays where it is."""

    field: str
    path: Path


@runtime_checkable
class NamesAssets(Protocol):
    """A part of a recipe that says which assets, files and folders it needs."""

    def assets(self) -> list[Asset | OwnPath]:
        """Return them without asking the network. Raises UserError for settings that cannot be satisfied."""
        ...


def names_assets(part: object) -> TypeGuard[NamesAssets]:
    """Return whether a part has a method `assets`; a user's own part may have a field of that name."""
    return isinstance(part, NamesAssets) and callable(part.assets)


def needed(recipe: Recipe) -> list[Asset | OwnPath]:
    """Return the assets and own paths that the parts of a recipe need. Raises UserError with all parts' problems."""
    by_name: dict[tuple[str, str], Asset | OwnPath] = {}
    problems = Problems()
    for field in dataclasses.fields(recipe):
        part = getattr(recipe, field.name)
        if not names_assets(part):
            continue
        with problems.collected():
            for need in part.assets():
                name = (need.key, "") if isinstance(need, Asset) else (need.field, str(need.path))
                by_name.setdefault(name, need)
    problems.raise_if_any()
    return list(by_name.values())


def assets_folder() -> Path | None:
    """Return the folder that published weights and data sets must come from, or None for the usual places."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None


def use_assets(folder: Path) -> None:
    """Take all assets from `folder` from now on, also in processes that this one starts.

    To be called before torch, timm or datasets are imported: a user's own parts may call these libraries, some of which
    read their settings only once. Raises UserError if nothing was ever fetched into `folder`.
    """
    folder = expanded(folder).absolute()
    Assets(folder)
    os.environ |= {
        VARIABLE: str(folder),
        "TORCH_HOME": str(folder / "torch"),
        "HF_HUB_CACHE": str(folder / "huggingface" / "hub"),
        **dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1"),
    }


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file of an asset as the manifest describes it."""

    path: Path
    bytes: int
    sha256: str

    def absent(self) -> str | None:
        """Return why the file cannot be the fetched one, judged without reading it, or None if it may be."""
        if not self.path.is_file():
            return "is not there"
        there = self.path.stat().st_size
        fault = f"is damaged: {plural(there, 'byte')}, where {self.bytes:,} were fetched"
        return None if there == self.bytes else fault

    def damaged(self) -> str | None:
        """Read the file and return why it is not the fetched one, or None if it is."""
        if fault := self.absent():
            return fault
        try:
            digest = sha256_of(self.path)
        except OSError as error:
            return f"cannot be read ({error.strerror or error})"
        fault = f"is damaged: its SHA-256 is {digest[:16]}..., and {self.sha256[:16]}... was fetched"
        return None if digest == self.sha256 else fault


class Assets:
    """A folder of fetched assets, as its manifest lists them. Raises UserError if no manifest can be read."""

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
            why = f"{MANIFEST} is damaged ({error}); remove it, and fetch again"
            raise UserError(f"--assets {folder}: {why}") from error

    def _stored(self, entry: Mapping[str, Any]) -> Iterator[StoredFile]:
        for path, facts in entry["files"].items():
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{path!r} lies outside the folder")
            yield StoredFile(self.folder / path, int(facts["bytes"]), str(facts["sha256"]))

    def files(self, asset: Asset) -> tuple[StoredFile, ...] | None:
        """Return the files of an asset, or None if it was never fetched."""
        return self._files.get(asset.key)

    def lacks(self, asset: Asset) -> str | None:
        """Return what an asset lacks, as the end of a line, or None if it lacks nothing.

        Files must exist and have the right size; their content is not read.
        """
        files = self.files(asset)
        if files is None:
            return f"{asset.what} is not among the assets in {self.folder}"
        return next((f"{file.path} {fault}" for file in files if (fault := file.absent())), None)

    def damage(self, assets: Iterable[Asset]) -> dict[str, str]:
        """Return for each damaged asset, by its key, its first damaged file and what is wrong with it.

        A file is damaged if it is missing or not the one that was fetched. Every byte of the assets is read.
        """
        pairs = [(asset.key, file) for asset in assets for file in self.files(asset) or ()]
        wrong: dict[str, str] = {}
        with concurrent.futures.ThreadPoolExecutor(HASHED_AT_ONCE) as pool:  # hashing releases the interpreter lock
            for (key, file), fault in zip(pairs, pool.map(lambda pair: pair[1].damaged(), pairs), strict=True):
                if fault:
                    wrong.setdefault(key, f"{file.path} {fault}")
        return wrong


_WANTED = "wanted: a folder that 'python -m launcher fetch RECIPE --to DIR' has filled"


def fetch_command(folder: Path) -> str:
    """Return the command that fetches what is missing, with RECIPE for the recipe, whose name is not known here."""
    return f"python -m launcher fetch RECIPE --to {shlex.quote(str(folder))}"


def verify_assets(recipe: Recipe, report: Callable[[str], None]) -> None:
    """Read all files that the recipe needs from the assets in use, and compare them with what was fetched.

    Without assets in use, nothing is done. Raises UserError with a line for each asset that is missing or damaged.
    """
    if (folder := assets_folder()) is None:
        return
    store = Assets(folder)
    assets = [need for need in needed(recipe) if isinstance(need, Asset)]
    files = [file for asset in assets for file in store.files(asset) or ()]
    if files:
        total = readable_size(sum(file.bytes for file in files))
        report(f"verifying {plural(len(files), 'file')} of the assets in {folder}, {total}")
    damage, advice = store.damage(assets), f"bring it, where there is network: {fetch_command(folder)}"
    faults = [(asset.field, store.lacks(asset) or damage.get(asset.key)) for asset in assets]
    if problems := [f"{field}: {fault}; {advice}" for field, fault in faults if fault]:
        raise UserError(*problems)


def sha256_of(file: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises OSError if it cannot be read."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
