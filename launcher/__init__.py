"""A distributed fine-tuning launcher for vision: the names that a recipe's author uses."""

from __future__ import annotations

from launcher.shadowed_libraries import end_if_shadowed

end_if_shadowed()

import os  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from launcher import backbones, data  # noqa: E402
from launcher.recipe import heads, optim, phases, tasks, transforms  # noqa: E402
from launcher.recipe.phases import Phase  # noqa: E402
from launcher.recipe.protocols import Preprocessing, Split, Splits  # noqa: E402
from launcher.recipe.recipe import Recipe  # noqa: E402

if TYPE_CHECKING:
    from launcher.inference.loaded_model import LoadedModel

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


def load(run_dir: str | os.PathLike[str], recipe: str | os.PathLike[str] | Recipe | None = None) -> LoadedModel:
    """Return the network of a finished run, on the CPU and in evaluation mode, with its preprocessing.

    It is used like this:

        model = launcher.load("runs/pets")
        images = torch.stack([model.preprocessing(image) for image in pil_images])
        probabilities = model.interpret(model(images))

    Nothing that the run dir names is imported: if the recipe has parts of your own, `recipe` is the file that defines
    them ("mine.py", "mine.py:variable"; its code is run, as a line on stderr says), or the recipe itself.

    Raises `launcher.errors.UserError` for a folder that is not a finished run, and for parts that are neither
    launcher's nor in `recipe`. Imports torch, which `import launcher` alone does not.
    """
    from pathlib import Path

    from launcher.inference.loaded_model import load as load_run
    from launcher.recipe.loading import types_of
    from launcher.recipe.type_names import types_in

    if isinstance(recipe, Recipe):
        return load_run(Path(run_dir), types_in(recipe))
    return load_run(Path(run_dir), types_of(os.fspath(recipe)) if recipe is not None else None)
