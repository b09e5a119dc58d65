"""Published weights behind a URL: found in torch.hub's cache, or fetched into it, or refused fast and clearly."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

from launcher.assets.bundle import Asset, assets_folder, fetch_command, sha256_of
from launcher.assets.download import answer_within, download, shown, size_of
from launcher.errors import UserError
from launcher.files import file_lock

REACH_SECONDS = 8
"""Time to wait for a server's first answer. A machine without a network must say so at once, not after retries."""
NOT_ABOUT_THE_FILE = (405, 501)
"""Status codes of servers that do not support HEAD requests."""

_IN_ASSETS = Path("torch", "hub", "checkpoints")  # as torch.hub has it below TORCH_HOME


def torch_hub_file(url: str) -> Path:
    """Return the path of the file of `url`: in the assets in use, else in torch.hub's cache, which TORCH_HOME moves."""
    import torch.hub

    name = Path(urlparse(url).path).name
    if (folder := assets_folder()) is not None:
        return folder / _IN_ASSETS / name
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def why_unreachable(url: str) -> str | None:
    """Return in a few words why `url` cannot be fetched, or None if its server has it. Takes at most REACH_SECONDS."""
    return _asked(url)[0]


def _asked(url: str) -> tuple[str | None, int | None]:
    """Return why `url` cannot be fetched, or None; and its size in bytes, or None if its server does not report it."""

    def ask() -> tuple[str | None, int | None]:
        headers = {"User-Agent": "launcher"}
        request = urllib.request.Request(url, headers=headers, method="HEAD")  # noqa: S310 - published https urls
        try:
            with urllib.request.urlopen(request, timeout=REACH_SECONDS) as answer:  # noqa: S310
                length = answer.headers.get("Content-Length", "")
                return None, int(length) if length.isdigit() else None
        except urllib.error.HTTPError as error:
            error.close()
            known = error.code not in NOT_ABOUT_THE_FILE
            return f"its server answered {error.code} {error.reason}" if known else None, None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            return f"no network: {getattr(reason, 'strerror', None) or reason}", None

    return answer_within(REACH_SECONDS, ask, (f"no answer within {REACH_SECONDS} s", None))


def described(name: str, asked: str | None, file: Path | None) -> str:
    """Describe published weights: "ResNet50_Weights.IMAGENET1K_V2 (DEFAULT), from /.../resnet50-11ad3fa6.pth"."""
    alias = f" ({asked})" if asked == "DEFAULT" else ""
    return f"{name}{alias}, from {file}" if file else f"{name}{alias}"


def not_here(weights: str, file: Path, url: str, reason: str) -> UserError:
    """Return the error for a published file that is not in the cache and cannot be fetched."""
    return UserError(
        f"backbone.weights={weights!r}: {file.name} is not in {file.parent} and cannot be fetched ({reason}); "
        f"ways on: put {url} there from a machine that has network ('python -m launcher fetch' brings all that a "
        "recipe needs), or give a file or the run dir of an earlier run (backbone.weights=PATH), or start from random "
        "weights (backbone.weights=none)"
    )


def not_among_assets(weights: str, name: str) -> UserError:
    """Return the error for a published file that is not among the assets in use, the only place where it may be."""
    folder = assets_folder()
    assert folder is not None
    return UserError(
        f"backbone.weights={weights!r}: {name} is not among the assets in {folder}; bring it, where there is network: "
        f"{fetch_command(folder)}"
    )


def check_cached(weights: str, url: str) -> None:
    """Raise UserError unless the file of `url` is intact in torch.hub's cache, or its server has it.

    With assets in use, the file must be among them. Nothing is downloaded.
    """
    file = torch_hub_file(url)
    if assets_folder() is not None:  # all assets are checked before a run, once for all processes of a machine
        if not file.is_file():
            raise not_among_assets(weights, file.name)
    elif file.is_file():
        _check_hash(weights, file)
    elif reason := why_unreachable(url):
        raise not_here(weights, file, url, reason)


def fetch(weights: str, url: str) -> Path:
    """Return the file of `url` in torch.hub's cache, after fetching it and checking its hash if it is not there yet.

    If several processes on a machine ask at once, only one of them fetches.

    Raises UserError without a network, for a server's refusal, a broken transfer, and a cache that cannot be written.
    """
    file = torch_hub_file(url)
    if file.is_file():
        return file
    if assets_folder() is not None:
        raise not_among_assets(weights, file.name)
    reason, size = _asked(url)
    if reason:
        raise not_here(weights, file, url, reason)
    # A single bar per machine, and only on a terminal.
    looked_at = sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0"
    arriving = shown(file.name, lambda: size_of(file.parent, f".{file.name}.*"), size)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(file.with_name(f".{file.name}.lock")), arriving if looked_at else contextlib.nullcontext():
            if not file.is_file():
                download(url, file, _hash_in(file))
    except (OSError, RuntimeError) as error:
        raise not_here(weights, file, url, str(error)) from error
    return file


def published_asset(weights: str, what: str, url: str) -> Asset:
    """Return the file of `url` as an asset, which is copied from torch.hub's cache if it is there."""

    def bring(files: Path, scratch: Path) -> str:
        target = files / _IN_ASSETS / Path(urlparse(url).path).name
        target.parent.mkdir(parents=True)
        cached = torch_hub_file(url)
        if cached.is_file():
            _check_hash(weights, cached)
            shutil.copyfile(cached, target)
            return f"{url}, copied from {cached}"
        if reason := why_unreachable(url):
            raise not_here(weights, cached, url, reason)
        download(url, target, _hash_in(target))
        return url

    def size() -> int | None:
        cached = torch_hub_file(url)
        return cached.stat().st_size if cached.is_file() else _asked(url)[1]

    return Asset(key=url, field=f"backbone.weights={weights!r}", what=what, bring=bring, size=size)


def _hash_in(file: Path) -> str | None:
    # torchvision and timm end the names of their files with the first digits of the SHA-256.
    match = re.search(r"-([a-f0-9]{8,})\.", file.name)
    return match.group(1) if match else None


def _check_hash(weights: str, file: Path) -> None:
    prefix = _hash_in(file)
    if prefix is not None and not sha256_of(file).startswith(prefix):
        raise UserError(
            f"backbone.weights={weights!r}: {file} is broken (its SHA-256 does not start with {prefix}); "
            "delete it, and it is fetched again"
        )
