"""Hash of all that stored features depend on: any change of it changes their name, so that no hit can be stale."""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from launcher.data.decoding import PIXELS_VERSION
from launcher.data.digests import Digests, content_digest
from launcher.recipe.own_code import code_of_types, is_own
from launcher.recipe.protocols import Split
from launcher.recipe.serialization import to_json
from launcher.recipe.transforms import VIEWS_VERSION
from launcher.training.feature_cache.cut import Cut
from launcher.training.feature_cache.rows import Layout
from launcher.training.frozen_proof import fingerprints

FORMAT = 1
"""Version of the rows, to be raised when the same inputs give other rows."""


def prefix_identity(cut: Cut, layout: Layout, precision: str, device: str) -> str:
    """Return a hash of what turns images into rows: operations, weights, precision, device, and library versions."""
    kinds = {type(module) for module in cut.prefix.modules()}
    facts = {
        "format": FORMAT,
        "operations": cut.operations,
        "weights": fingerprints(cut.prefix),
        "crossing": [(tensor.shape, str(dtype)) for tensor, dtype in zip(cut.boundary, layout.dtypes, strict=True)],
        "stored": str(layout.dtype),
        "computed": [precision, device],
        "code": _sources(kinds),
        "versions": versions_of("torch", "torchvision", "timm"),
    }
    return _hash(facts)


def features_name(prefix: str, split: Split, digests: Digests, transform: str) -> str:
    """Return the name of the rows of a split, seen through a transform (`transform_identity`)."""
    facts = [prefix, transform, len(split), hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()]
    return _hash(facts)


def transform_identity(preprocessing: Any, augment: Any | None, seed: int, view: int) -> str:
    """Return a hash of a transform that draws from (seed, view, sample).

    For the evaluation transform, which draws nothing, `augment` is None.
    """
    facts: dict[str, Any] = {
        "preprocessing": repr(preprocessing),
        "decoding": [PIXELS_VERSION, VIEWS_VERSION],
        "versions": versions_of("torch", "torchvision", "pillow"),
    }
    if augment is not None:
        facts |= {"augment": to_json(augment), "code": _sources([type(augment)]), "drawn": [seed, view]}
    return _hash(facts)


def _sources(kinds: Iterable[type]) -> list[str]:
    """Return hashes of what classes do.

    The user's own classes are hashed by their code and what it imports, those of other libraries by their files.
    Version constants stand for launcher's classes, and library versions for those of torch, torchvision and timm.
    """
    known = ("launcher", "torch", "torchvision", "timm")
    foreign = {kind for kind in kinds if kind.__module__.partition(".")[0] not in known}
    own = {kind for kind in foreign if is_own(kind)}
    files = {Path(inspect.getfile(kind)) for kind in foreign - own if kind.__module__ in sys.modules}
    return sorted([*code_of_types(own), *(content_digest(file).hex() for file in files)])


def versions_of(*names: str) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _hash(facts: Any) -> str:
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
