"""A distributed fine-tuning launcher for vision. These are the names that a recipe's author uses."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from launcher.recipe import backbones, data, heads, optim, phases, tasks, transforms
from launcher.recipe.phases import Phase
from launcher.recipe.protocols import Preprocessing, Split, Splits
from launcher.recipe.recipe import Recipe

if TYPE_CHECKING:
    from launcher.results.loaded import LoadedModel

__version__ = "0.1.0"

__all__ = [
    "Phase",
    "Preprocessing",
    "Recipe",
    "Split",
    "Splits",
    "backbones",
    "data",
    "heads",
    "load",
    "optim",
    "phases",
    "tasks",
    "transforms",
]


def load(run_dir: str | os.PathLike[str]) -> LoadedModel:
    """The network of a finished run, on the CPU and in evaluation mode, with what it takes to use it:

        model = launcher.load("runs/pets")
        images = torch.stack([model.preprocessing(image) for image in pil_images])
        probabilities = model.interpret(model(images))

    Raises `launcher.errors.UserError` for a folder that is no finished run. Imports torch, as `import launcher` alone
    does not.
    """
    from pathlib import Path

    from launcher.results.loaded import load as load_run

    return load_run(Path(run_dir))
