"""Published weights: in the cache, or fetched into it, or a quick and clear no."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

from launcher.errors import UserError

REACH_SECONDS = 8
"""How long to wait for a server's first answer. A machine without network must say so at once, not after retries."""
STALL_SECONDS = 60
"""How long a download may stand still."""


def torch_hub_file(url: str) -> Path:
    """Where torch.hub keeps the file of `url` (TORCH_HOME moves it)."""
    import torch.hub

    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


def why_unreachable(url: str) -> str | None:
    """Why `url` cannot be fetched, in a few words, or None if its server has it. Takes at most REACH_SECONDS."""
    answers: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(url, headers={"User-Agent": "launcher"})  # noqa: S310 - published https urls
        try:
            with urllib.request.urlopen(request, timeout=REACH_SECONDS):  # noqa: S310
                answers.append(None)
        except urllib.error.HTTPError as error:
            error.close()
            answers.append(f"its server answered {error.code} {error.reason}")
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            answers.append(f"no network: {getattr(reason, 'strerror', None) or reason}")

    # A thread, because looking up a host name has no timeout of its own; a daemon, so that it never delays the exit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return answers[0] if answers else f"no answer within {REACH_SECONDS} s"


def described(name: str, asked: str | None, file: Path | None) -> str:
    """Published weights in words: "ResNet50_Weights.IMAGENET1K_V2 (DEFAULT), from /.../resnet50-11ad3fa6.pth"."""
    alias = f" ({asked})" if asked == "DEFAULT" else ""
    return f"{name}{alias}, from {file}" if file else f"{name}{alias}"


def not_here(weights: str, file: Path, url: str, reason: str) -> UserError:
    """The error for a published file that is neither in the cache nor to be had."""
    return UserError(
        f"backbone.weights={weights!r}: {file.name} is not in {file.parent} and cannot be fetched ({reason}); "
        f"ways on: put {url} there from a machine that has network, or give a file or the run dir of an earlier run "
        "(backbone.weights=PATH), or start from random weights (backbone.weights=none)"
    )


def check_cached(weights: str, url: str) -> None:
    """Raises UserError unless the file of `url` is whole in torch.hub's cache, or its server has it. Loads nothing."""
    file = torch_hub_file(url)
    if file.is_file():
        _check_hash(weights, file)
    elif reason := why_unreachable(url):
        raise not_here(weights, file, url, reason)


def fetch(weights: str, url: str) -> Path:
    """The file of `url` in torch.hub's cache, fetched where it is not there yet; its hash is checked on arrival.

    Raises UserError without network, for a server's refusal, a broken transfer, and a cache that cannot be written.
    """
    import torch.hub

    file = torch_hub_file(url)
    if file.is_file():
        return file
    if reason := why_unreachable(url):
        raise not_here(weights, file, url, reason)
    # One bar, and only where somebody looks at it.
    progress = sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _stalls_end():
            # Written beside its place and renamed, so that several processes may do this at once.
            torch.hub.download_url_to_file(url, str(file), hash_prefix=_hash_in(file), progress=progress)
    except (OSError, RuntimeError) as error:
        raise not_here(weights, file, url, str(error)) from error
    return file


def _hash_in(file: Path) -> str | None:
    # torchvision and timm end the names of their files in the first digits of their SHA-256.
    found = re.search(r"-([a-f0-9]{8,})\.", file.name)
    return found.group(1) if found else None


def _check_hash(weights: str, file: Path) -> None:
    wanted = _hash_in(file)
    if wanted is None:
        return
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    if not digest.hexdigest().startswith(wanted):
        raise UserError(
            f"backbone.weights={weights!r}: {file} is broken (its SHA-256 does not start with {wanted}); "
            "delete it, and it is fetched again"
        )


@contextlib.contextmanager
def _stalls_end() -> Iterator[None]:
    # torch.hub gives no way to pass a timeout; without one a dead connection waits for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
