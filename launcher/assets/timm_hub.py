"""Published weights of timm: found in the Hugging Face hub's cache, or fetched into it, or refused fast and clearly."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from launcher.assets import torch_hub
from launcher.assets.bundle import Asset, assets_folder
from launcher.assets.torch_hub import check_cached, fetch, not_among_assets, torch_hub_file, why_unreachable
from launcher.errors import UserError

# The names that timm gives to weights files on the hub, in the order in which it looks for them.
FILES = ("model.safetensors", "pytorch_model.bin")

_IN_ASSETS = Path("huggingface", "hub")  # as the hub's library has it below HF_HOME


def check_published(weights: str, config: Any) -> None:
    """Raise UserError unless the weights that `config` (timm's PretrainedCfg) names are cached or can be fetched.

    Nothing is downloaded.
    """
    if config.hf_hub_id:
        if _cached(config) is not None:
            return
        if assets_folder() is not None:
            raise not_among_assets(weights, config.hf_hub_id)
        if reason := _why_offline():
            raise _not_here(weights, config, reason)
    elif config.url:
        check_cached(weights, config.url)
    else:
        raise _never_published(config)


def fetch_published(weights: str, config: Any) -> Path:
    """Return the file of the weights that `config` names, after fetching it if it is not in the cache yet.

    Raises UserError if it cannot be fetched.
    """
    if not config.hf_hub_id:
        if config.url:
            return fetch(weights, config.url)
        raise _never_published(config)
    if (file := _cached(config)) is not None:
        return file
    if assets_folder() is not None:
        raise not_among_assets(weights, config.hf_hub_id)
    return _downloaded(weights, config, None)


def _downloaded(weights: str, config: Any, cache: Path | None) -> Path:
    """Download the file from the hub into its own cache, or into `cache`. Raises UserError if that is impossible."""
    if reason := _why_offline():
        raise _not_here(weights, config, reason)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    repository, revision = _repository(config)
    for name in _files(config):
        try:
            return Path(hf_hub_download(repository, name, revision=revision, cache_dir=cache))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's own errors, its HTTP library's and the file system's have no common base
            raise _not_here(weights, config, str(error)) from error
    raise _not_here(weights, config, f"it has none of {', '.join(_files(config))}")


def published_asset(weights: str, what: str, config: Any) -> Asset:
    """Return the weights that `config` names as an asset, which is copied from the hub's cache if they are there.

    They lie in the assets as in a cache of the hub, but without its links, so that the folder can be copied by any
    means. Raises UserError if timm publishes none.
    """
    if not config.hf_hub_id:
        if config.url:
            return torch_hub.published_asset(weights, what, config.url)
        raise _never_published(config)
    repository, revision = _repository(config)

    def bring(files: Path, scratch: Path) -> str:
        from huggingface_hub import constants

        cached = _cached(config)
        file = cached or _downloaded(weights, config, scratch)
        snapshot = next(parent for parent in file.parents if parent.parent.name == "snapshots")
        place, commit = files / _IN_ASSETS / snapshot.parents[1].name, snapshot.name
        target = place / file.relative_to(snapshot.parents[1])
        target.parent.mkdir(parents=True)
        shutil.copyfile(file, target)
        reference = place / "refs" / (revision or "main")
        reference.parent.mkdir(parents=True)
        reference.write_text(commit)
        return f"{constants.ENDPOINT}/{repository}@{commit}" + (f", copied from {cached}" if cached else "")

    key = f"{config.hf_hub_id}/{config.hf_hub_filename or ''}"
    return Asset(key=f"hub:{key}", field=f"backbone.weights={weights!r}", what=what, bring=bring)


def published_file(config: Any) -> Path | None:
    """Return the file in the cache, or None if it is not there yet. Nothing is fetched."""
    if config.hf_hub_id:
        return _cached(config)
    return torch_hub_file(config.url) if config.url else None


def _files(config: Any) -> tuple[str, ...]:
    return (config.hf_hub_filename,) if config.hf_hub_filename else FILES


def _repository(config: Any) -> tuple[str, str | None]:
    repository, _, revision = config.hf_hub_id.partition("@")
    return repository, revision or None


def _cached(config: Any) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    folder, (repository, revision) = assets_folder(), _repository(config)
    cache = folder / _IN_ASSETS if folder is not None else None
    for name in _files(config):
        path = try_to_load_from_cache(repository, name, revision=revision, cache_dir=cache)
        if isinstance(path, str):  # otherwise None, or a marker that the hub does not have it
            return Path(path)
    return None


def _why_offline() -> str | None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    reason = why_unreachable(constants.ENDPOINT)
    # Any answer to an anonymous request shows that the server is there; the hub's client, which has the user's token,
    # asks it again.
    return None if reason and reason.startswith("its server answered") else reason


def _not_here(weights: str, config: Any, reason: str) -> UserError:
    from huggingface_hub import constants

    repository, _ = _repository(config)
    return UserError(
        f"backbone.weights={weights!r}: {_files(config)[0]} of {repository} is not in {constants.HF_HUB_CACHE} and "
        f"cannot be fetched from {constants.ENDPOINT} ({reason}); ways on: bring them from a machine that has network "
        f"('python -m launcher fetch' there, --assets here; or 'hf download {repository}', and copy that folder), or "
        "give a file or the run dir of an earlier run (backbone.weights=PATH), or start from random weights "
        "(backbone.weights=none)"
    )


def _never_published(config: Any) -> UserError:
    return UserError(
        f"backbone.weights: timm publishes none for {config.architecture}; give a file or the run dir of an earlier "
        "run (backbone.weights=PATH), or start from random weights (backbone.weights=none)"
    )
