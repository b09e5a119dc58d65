"""A phase's network in two parts: the frozen prefix as an engine, and the tail that trains."""

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
    """A phase's network in two parts. The first is computed here, the second is what trains."""

    prefix: Prefix
    layout: Layout
    tail: Tail
    """Parameters under the names of the whole network, behind "model."."""
    identity: Callable[[], str]
    """Of all that the prefix's outputs depend on, apart from the images. Hashes the weights."""
    is_copy: bool
    """The prefix holds weights of its own: folded, or of another precision."""
    rounds: bool
    """What crosses is rounded to the precision of storage, whether it is stored or not."""

    def of(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """What crosses for pictures on the device, normalised or not yet."""
        crossing = self.prefix(batch.images, batch.normalise)
        return self.layout.rounded(crossing) if self.rounds else crossing

    def fingerprints(self) -> dict[str, str]:
        """Of weights that are not the network's own, by names of their own."""
        if not self.is_copy:
            return {}
        return {f"(frozen prefix) {name}": value for name, value in fingerprints(self.prefix.module).items()}


def frozen_part(
    accelerator: Accelerator, model: TransferModel, resolved: ResolvedPhase, recipe: Recipe, image_size: int
) -> Frozen | str | None:
    """The phase's network cut in two; None where nothing is frozen; or why it cannot be cut.

    `model` is on its device, and its parameters are frozen as the phase's rules say.
    """
    found = cut(model, resolved.phase.norm_statistics, image_size)
    if isinstance(found, Uncut):
        return found.reason
    precision = str(accelerator.mixed_precision)
    fixed = resolved.fixed_views is not None
    # What is stored is computed once, and should be what it is without: there a few percent are not worth a rounding.
    fold = not fixed and not draws_nothing(recipe)
    prefix, is_copy = engine(
        found, autocast=accelerator.autocast, precision=precision, fold=fold, image_size=image_size
    )
    given = prefix.dtypes(image_size)
    asked = recipe.cache_precision
    exact = torch.float32 if torch.float32 in given else given[0]
    layout = Layout(found.crossing, exact if asked is None else dtype_of(asked), given)
    computed = f"{precision}{' folded' if fold else ''}"
    identity = functools.partial(prefix_identity, found, layout, computed, accelerator.device.type)
    return Frozen(prefix, layout, found.tail, identity, is_copy, rounds=asked is not None and fixed)
