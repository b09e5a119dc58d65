"""Network of a phase, cut in two: the frozen prefix as an engine, and the tail that trains."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from launcher.recipe.recipe import Recipe
from launcher.training.feature_cache.cut import Tail, Uncut, cut
from launcher.training.feature_cache.identity import prefix_identity
from launcher.training.feature_cache.prefix import Prefix, dtype_of, engine
from launcher.training.feature_cache.rows import Layout
from launcher.training.feature_cache.views import draws_nothing
from launcher.training.frozen_proof import fingerprints
from launcher.training.images import Batch
from launcher.training.model import TransferModel
from launcher.training.preflight import ResolvedPhase

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclasses.dataclass
class Frozen:
    """Network of a phase, cut in two: the prefix is computed here, and the tail is what trains."""

    prefix: Prefix
    layout: Layout
    tail: Tail
    """Tail with its parameters under the names of the whole network, behind "model."."""
    identity: Callable[[], str]
    """Function that hashes all that the prefix's outputs depend on, the weights included and the images excluded."""
    is_copy: bool
    """True if the prefix holds weights of its own: folded, or of another precision."""
    rounds: bool
    """True if boundary tensors are rounded to the precision of storage, stored or not."""

    def of(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the boundary tensors of images on the device, normalised already or not yet."""
        boundary = self.prefix(batch.images, batch.normalise)
        return self.layout.rounded(boundary) if self.rounds else boundary

    def fingerprints(self) -> dict[str, str]:
        """Return fingerprints of the weights that are not the network's own, under names of their own."""
        if not self.is_copy:
            return {}
        return {f"(frozen prefix) {name}": value for name, value in fingerprints(self.prefix.module).items()}


def frozen_part(
    accelerator: Accelerator, model: TransferModel, resolved: ResolvedPhase, recipe: Recipe, image_size: int
) -> Frozen | str | None:
    """Cut the phase's network in two; return None if nothing is frozen, or the reason if it cannot be cut.

    `model` is on its device, and its parameters are frozen as the phase's rules say.
    """
    parts = cut(model, resolved.phase.norm_statistics, image_size)
    if isinstance(parts, Uncut):
        return parts.reason
    precision = str(accelerator.mixed_precision)
    fixed = resolved.fixed_views is not None
    # Features that may be stored are computed once, and should equal those computed without a cache: there, the few
    # percent that folding saves are not worth its rounding.
    fold = not fixed and not draws_nothing(recipe)
    prefix, is_copy = engine(
        parts, autocast=accelerator.autocast, precision=precision, fold=fold, image_size=image_size
    )
    dtypes = prefix.dtypes(image_size)
    asked = recipe.cache_precision
    exact = torch.float32 if torch.float32 in dtypes else dtypes[0]
    layout = Layout(parts.boundary, exact if asked is None else dtype_of(asked), dtypes)
    computed = f"{precision}{' folded' if fold else ''}"
    identity = functools.partial(prefix_identity, parts, layout, computed, accelerator.device.type)
    return Frozen(prefix, layout, parts.tail, identity, is_copy, rounds=asked is not None and fixed)
