"""Types that a recipe's JSON may name: launcher's own by their public names, and others that a user brings.

A name in a file is looked up in tables and never imported, so the content of a file cannot run code.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from launcher.recipe.dotted import dataclasses_in, is_dataclass_value
from launcher.recipe.phases import Phase
from launcher.recipe.protocols import Preprocessing
from launcher.recipe.recipe import Recipe

Types = Mapping[str, type]
"""Classes by the names that `name_of` gives them."""

_NAMESPACES = ("backbones", "data", "heads", "optim", "phases", "tasks", "transforms")

_OLD_NAMES = {
    "launcher.recipe.backbones.timm.Timm": "launcher.backbones.Timm",
    "launcher.recipe.backbones.torchvision.Torchvision": "launcher.backbones.Torchvision",
    "launcher.recipe.data.folder.ImageFolder": "launcher.data.ImageFolder",
    "launcher.recipe.data.hub.HuggingFace": "launcher.data.HuggingFace",
    "launcher.recipe.data.table.CsvImages": "launcher.data.CsvImages",
    "launcher.recipe.data.torchvision_sets.Torchvision": "launcher.data.Torchvision",
    "launcher.recipe.heads.Linear": "launcher.heads.Linear",
    "launcher.recipe.heads.MLP": "launcher.heads.MLP",
    "launcher.recipe.optim.AdamW": "launcher.optim.AdamW",
    "launcher.recipe.optim.Constant": "launcher.optim.Constant",
    "launcher.recipe.optim.OneCycle": "launcher.optim.OneCycle",
    "launcher.recipe.optim.SGD": "launcher.optim.SGD",
    "launcher.recipe.optim.Step": "launcher.optim.Step",
    "launcher.recipe.optim.WarmupCosine": "launcher.optim.WarmupCosine",
    "launcher.recipe.phases.Phase": "launcher.Phase",
    "launcher.recipe.protocols.Preprocessing": "launcher.Preprocessing",
    "launcher.recipe.recipe.Recipe": "launcher.Recipe",
    "launcher.recipe.tasks.Classification": "launcher.tasks.Classification",
    "launcher.recipe.tasks.MultiLabel": "launcher.tasks.MultiLabel",
    "launcher.recipe.tasks.Regression": "launcher.tasks.Regression",
    "launcher.recipe.transforms.Augment": "launcher.transforms.Augment",
}
"""Public name of each class by its old name, from when recipes named classes by their modules."""


@functools.cache
def public_types() -> Types:
    """Return launcher's own parts by their public names, such as "launcher.optim.AdamW"."""
    types: dict[str, type] = {f"launcher.{cls.__name__}": cls for cls in (Phase, Preprocessing, Recipe)}
    for namespace in _NAMESPACES:
        module = getattr(importlib.import_module("launcher"), namespace)
        for name, value in vars(module).items():
            own = str(getattr(value, "__module__", "")).startswith(module.__name__)  # not imported from elsewhere
            if isinstance(value, type) and dataclasses.is_dataclass(value) and own and value is not Phase:
                types[f"launcher.{namespace}.{name}"] = value
    return types


@functools.cache
def _public_names() -> Mapping[type, str]:
    return {cls: name for name, cls in public_types().items()}


def name_of(cls: type) -> str:
    """Return the name of a class in JSON: its public name, or else its dotted name with its module."""
    return _public_names().get(cls) or f"{cls.__module__}.{cls.__qualname__}"


def current_name(name: object) -> object:
    """Return the public name for an old name of a class, and any other value as it is."""
    return _OLD_NAMES.get(name, name) if isinstance(name, str) else name


def find_type(name: object, own: Types) -> type | None:
    """Return the class that JSON names, from launcher's or from `own`, or None; import nothing."""
    if not isinstance(name, str):
        return None
    if (public := public_types().get(str(current_name(name)))) or name.startswith("launcher."):
        return public or own.get(name)
    return own.get(name) or own.get(f":{name.rpartition('.')[2]}")


def is_public(cls: type) -> bool:
    """Return whether a class is one of launcher's own parts."""
    return cls in _public_names()


def types_in(value: object) -> Types:
    """Return the user's own classes in a recipe or another dataclass value."""
    return _named([type(part) for part in dataclasses_in(value) if not is_public(type(part))])


def types_in_module(module: ModuleType, root: Path) -> Types:
    """Return the user's own classes that come with a recipe's module, which has been imported.

    These are the classes in its recipes and all dataclasses that the module names, and likewise for all imported
    modules below the folder `root`.
    """
    types: dict[str, type] = {}
    beside = [imported for imported in list(sys.modules.values()) if _lies_below(imported, root)]
    for source in (*beside, module):
        for value in list(vars(source).values()):
            if isinstance(value, type):
                if dataclasses.is_dataclass(value) and not is_public(value):
                    types |= _named([value])
            elif is_dataclass_value(value):
                types |= types_in(value)
    return types


def _named(classes: Sequence[type]) -> dict[str, type]:
    """Return classes by full name and by `:CLASS` alone, because their file may have been renamed since a run."""
    return {f":{cls.__qualname__}": cls for cls in classes} | {name_of(cls): cls for cls in classes}


def _lies_below(module: ModuleType, root: Path) -> bool:
    file = getattr(module, "__file__", None)
    if file is None or "site-packages" in Path(file).parts:
        return False
    installed = (Path(__file__).parents[1], Path(os.__file__).parent)  # launcher's private classes, Python's own
    return Path(file).is_relative_to(root) and not any(Path(file).is_relative_to(folder) for folder in installed)
