"""Fetching of recipes' assets into one folder, for machines without a network.

    DIR/MANIFEST.json                                  what is there: files, bytes, SHA-256, what it is, from where
    DIR/torch/hub/checkpoints/resnet50-11ad3fa6.pth    published weights, as torch.hub keeps them
    DIR/huggingface/hub/models--timm--.../             published weights, as the hub's library keeps them
    DIR/datasets/hub/<org>/<name>/<configuration>/     data sets of the hub, as `save_to_disk` writes them
    DIR/datasets/torchvision/<name>/                   data sets of torchvision
    DIR/packages/<package>/...                         weights that a Python package ships

Files are written below DIR/.partial, moved to their places when they are complete, and entered into the manifest last.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.assets.bundle import (
    FORMAT,
    HASHED_AT_ONCE,
    MANIFEST,
    VARIABLE,
    Asset,
    Assets,
    OwnPath,
    fetch_command,
    names_assets,
    needed,
    sha256_of,
)
from launcher.assets.download import shown, size_of
from launcher.errors import Problems, UserError
from launcher.files import expanded, file_lock, remove_drafts, write_json
from launcher.recipe.recipe import Recipe
from launcher.text import plural, readable_size

PARTIAL = ".partial"
LOCK = ".lock"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OF_A_DISK = (*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR)


def missing_assets(recipe: Recipe, assets: Path, command: str | None = None) -> list[str]:
    """Return a line for each thing that a run of `recipe` with these assets would lack; no lines if it can start.

    Only names and sizes are compared, so this is cheap enough to do before every job; a run itself reads and compares
    all bytes. `command` is the command that fetches what is missing.
    """
    assets = expanded(assets).absolute()
    command = command or fetch_command(assets)
    try:
        store, needs = Assets(assets), needed(recipe)
    except UserError as error:
        return list(error.problems)
    lines = []
    for need in needs:
        if isinstance(need, OwnPath):
            if not need.path.exists():
                lines.append(f"{need.field}: {need.path} is not there; it is a path of your own, which fetch leaves")
        elif fault := store.lacks(need):
            lines.append(f"{need.field}: {fault}; bring it, where there is network: {command}")
    return lines


@dataclasses.dataclass(frozen=True)
class Fetched:
    """Result of a fetch: assets that were fetched, assets that were there already, and the user's own paths."""

    brought: tuple[Asset, ...]
    there: tuple[Asset, ...]
    own: tuple[OwnPath, ...]


def fetch(recipe: Recipe, folder: Path, report: Callable[[str], None]) -> Fetched:
    """Fetch all assets that `recipe` needs into `folder`, and check those that are there already.

    `report` is called with a line for each step. Of several processes that fetch into one folder, only one works at a
    time. Raises UserError with all that could not be fetched, after everything else has been.
    """
    folder = expanded(folder).absolute()
    os.environ.pop(VARIABLE, None)  # assets must not be looked for in the very folder that they are fetched into
    needs = needed(recipe)
    own = tuple(need for need in needs if isinstance(need, OwnPath))
    assets = [need for need in needs if isinstance(need, Asset)]
    for name, part in (("backbone", recipe.backbone), ("data", recipe.data)):
        if not names_assets(part):
            report(f"{name}: {type(part).__name__} does not say what it needs (it has no method 'assets')")
    for path in own:
        report(f"{path.field}: your own, stays where it is: {path.path}{'' if path.path.exists() else ' (not there)'}")
    problems = Problems()
    brought, there = [], []
    with _disk_errors_reported(folder):
        _make(folder)
        with _alone(folder, report):
            store = Assets(folder)
            damage = store.damage(assets)
            for asset in assets:
                files = store.files(asset)
                if files and asset.key not in damage:
                    report(f"{asset.field}: {asset.what} is there, {_extent([file.bytes for file in files])} verified")
                    there.append(asset)
                    continue
                if asset.key in damage:
                    report(f"{asset.field}: {damage[asset.key]}; fetching it again")
                with problems.collected(), _disk_errors_reported(folder):
                    _bring(asset, folder, report)
                    brought.append(asset)
            with contextlib.suppress(OSError):
                (folder / PARTIAL).rmdir()  # stays if it contains a partial download that can be continued
    problems.raise_if_any()
    return Fetched(tuple(brought), tuple(there), own)


def _bring(asset: Asset, folder: Path, report: Callable[[str], None]) -> None:
    begin = time.monotonic()
    partial = folder / PARTIAL / hashlib.sha256(asset.key.encode()).hexdigest()[:16]
    files, scratch = partial / "files", partial / "scratch"
    if files.exists():  # left by a fetch that was stopped; what libraries can continue is in `scratch`
        shutil.rmtree(files)
    files.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    size = asset.size()
    _check_space(asset, folder, size)
    report(f"{asset.field}: fetching {asset.what}" + (f", {readable_size(size)}" if size else ""))
    with shown(asset.what, lambda: size_of(partial), size):
        try:
            source = asset.bring(files, scratch)
        except UserError:
            raise
        except Exception as error:  # libraries raise anything when the network fails, including OSError
            if isinstance(error, OSError) and error.errno in _OF_A_DISK:
                raise
            raise UserError(f"{asset.field}: {asset.what} cannot be fetched: {error}") from error
    contents = [path for path in sorted(files.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    paths = {path.relative_to(files).as_posix(): path for path in contents}
    if not paths:
        raise UserError(f"{asset.field}: {asset.what} was fetched, and brought no file")
    entry: dict[str, Any] = {"what": asset.what, "for": asset.field, "from": source, "files": {}}
    with concurrent.futures.ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        for (name, path), digest in zip(paths.items(), pool.map(sha256_of, paths.values()), strict=True):
            entry["files"][name] = {"bytes": path.stat().st_size, "sha256": digest}
    for name, path in paths.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.replace(folder / name)
    _enter(folder, asset.key, entry)
    shutil.rmtree(partial, ignore_errors=True)  # NFS renames files that are still mapped and keeps them for a while
    extent = _extent([facts["bytes"] for facts in entry["files"].values()])
    report(f"{asset.field}: {asset.what} is there, {extent} in {time.monotonic() - begin:.1f} s, from {source}")


def _check_space(asset: Asset, folder: Path, size: int | None) -> None:
    free = shutil.disk_usage(folder).free
    if size is not None and size > free:
        raise UserError(
            f"{asset.field}: {asset.what} has {readable_size(size)}, and {folder} has {readable_size(free)} free; "
            "make room, or give another folder (--to)"
        )


def _make(folder: Path) -> None:
    """Create the folder unless it exists, and check that files can be created in it.

    Raises UserError if `folder` is a file, and OSError if it cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--to {folder}: is a file; give a folder, or a name that is free")
    folder.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()  # it has no name, so that a killed process leaves nothing behind


@contextlib.contextmanager
def _alone(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time fetch into `folder`, and make sure that it has a manifest.

    The manifest may be empty: a recipe that needs nothing runs with such a folder.
    """
    with file_lock(folder / LOCK, lambda: report(f"waiting: another fetch into {folder} is at work")):
        if not (folder / MANIFEST).exists():
            _write_manifest(folder, {})
        yield


def _enter(folder: Path, key: str, entry: dict[str, Any]) -> None:
    entries = {known: dict(facts) for known, facts in Assets(folder).entries.items()}
    _write_manifest(folder, dict(sorted({**entries, key: entry}.items())))


def _write_manifest(folder: Path, entries: dict[str, Any]) -> None:
    remove_drafts(folder, MANIFEST)
    write_json(folder / MANIFEST, {"format": FORMAT, "assets": entries})


@contextlib.contextmanager
def _disk_errors_reported(folder: Path) -> Iterator[None]:
    """Turn an error of the disk below `folder` into a UserError."""
    try:
        yield
    except OSError as error:
        way_on = "make room" if error.errno in _FULL else "choose a folder that is writable"
        raise UserError(
            f"--to {folder}: cannot write {error.filename or 'there'} ({error.strerror or error}); {way_on}, or give "
            "another folder"
        ) from error


def _extent(sizes: list[int]) -> str:
    return f"{plural(len(sizes), 'file')}, {readable_size(sum(sizes))}"
