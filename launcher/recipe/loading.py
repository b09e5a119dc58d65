"""Import of a recipe file, from any folder, by its dotted name.

The import is always by dotted name: a module that is loaded from the location of its file cannot be pickled into
DataLoader workers, so a user's own data part would fail with num_workers > 0.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pydantic

from launcher.errors import UserError, did_you_mean
from launcher.recipe.location import Place, collision, find_recipe, shown
from launcher.recipe.part import problems_in
from launcher.recipe.recipe import Recipe
from launcher.recipe.type_names import Types, types_in_module
from launcher.shadowed_libraries import LIBRARIES, WITH_PART, line_of, shadowing

_OUR_FOLDER = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class LoadedRecipe:
    """A loaded recipe and its origin."""

    recipe: Any
    module_name: str
    """Dotted name for `importlib.import_module`, once `load_recipe` has put the folder on sys.path."""
    path: Path
    variable: str = "recipe"
    """The name that holds the recipe in its module."""

    @property
    def run_name(self) -> str:
        """Return the default name of its runs; two recipes in one file get different names."""
        return self.path.stem if self.variable == "recipe" else f"{self.path.stem}-{self.variable}"

    @property
    def default_run_dir(self) -> Path:
        """Return the run dir of a run for which the user names none."""
        return Path("runs") / self.run_name

    @property
    def spec(self) -> str:
        """Return the argument that names the recipe on the command line, relative to the current folder if possible."""
        path = self.path.relative_to(Path.cwd()) if self.path.is_relative_to(Path.cwd()) else self.path
        return str(path) if self.variable == "recipe" else f"{path}:{self.variable}"


def load_recipe(spec: str, recipe_type: type = Recipe) -> LoadedRecipe:
    """Load the recipe that `spec` names.

    `spec` is "recipes/resnet50.py" or "recipes.resnet50", either with ":name" for a variable other than `recipe`.
    `recipe_type` is the class that the variable must hold an instance of, launcher's Recipe by default.

    The folder above the outermost package of the file goes to the front of sys.path, so that a recipe can import the
    modules beside it.

    Raises UserError for a missing file, for any error inside it (with file and line), for a name that another module
    already has, and for a variable that is missing or holds no recipe.
    """
    place_text, colon, attribute = spec.rpartition(":")
    if not (colon and attribute.isidentifier()):  # "C:\x.py" has a colon, too, but no identifier follows it.
        place_text, attribute = spec, "recipe"
    place = find_recipe(place_text)
    _refuse_shadowing(place.root)
    module = _imported(place)
    recipe = _recipe_in(module, attribute, place.path, recipe_type)
    parts = (type(getattr(recipe, name, None)).__name__ for name in ("data", "backbone"))
    _refuse_shadowing(place.root, frozenset(WITH_PART[part] for part in parts if part in WITH_PART))
    return LoadedRecipe(recipe, place.name, place.path, attribute)


def _refuse_shadowing(folder: Path, libraries: frozenset[str] = LIBRARIES) -> None:
    """Raise UserError for each file beside a recipe that would be imported in place of a library."""
    if paths := shadowing(str(folder), libraries):
        raise UserError(*(line_of(str(shown(Path(path)))) for path in paths))


def types_of(spec: str) -> Types:
    """Return the user's own classes that come with the recipe `spec`, by their names in a recipe's JSON.

    This runs the code of the recipe's file and says so on stderr. Raises UserError like `load_recipe`.
    """
    if os.environ.get("RANK", "0") == "0":
        print(f"running the code of {spec}, for the parts that it defines", file=sys.stderr, flush=True)
    loaded = load_recipe(spec)
    root = loaded.path.parents[loaded.module_name.count(".")]
    return types_in_module(sys.modules[loaded.module_name], root)


def types_of_files(specs: Sequence[str] | None) -> Types:
    """Return the classes that come with several recipes, as `types_of` does for one."""
    types: dict[str, type] = {}
    for spec in specs or ():
        types |= types_of(spec)
    return types


def recipe_words(specs: Sequence[str] | None) -> str:
    """Return the option `--recipe` for a further command, with a space before it."""
    return "".join(f" --recipe {shlex.quote(spec)}" for spec in specs or ())


def _imported(place: Place) -> ModuleType:
    if sys.path[:1] != [str(place.root)]:
        sys.path.insert(0, str(place.root))
    importlib.invalidate_caches()  # The file may be newer than Python's cached listing of its folder.
    try:
        module = importlib.import_module(place.name)
    except (Exception, SystemExit) as error:
        raise UserError(*_problems_of_import(error, place)) from error
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).samefile(place.path):
        raise UserError(collision(place.path, place.name, file))
    return module


def _problems_of_import(error: BaseException, place: Place) -> list[str]:
    if isinstance(error, ModuleNotFoundError) and f"{place.name}.".startswith(f"{error.name}."):
        # Another package of the same outermost name was imported earlier, from another folder.
        package = sys.modules.get(place.name.split(".")[0])
        return [collision(place.path, place.name, getattr(package, "__file__", None))]
    if isinstance(error, SyntaxError):
        at = f"{shown(Path(error.filename or place.path))}:{error.lineno}"
        return [f"{at}: {error.msg}: {(error.text or '').strip()}"]
    at = _line_of(error, place)
    if isinstance(error, pydantic.ValidationError):
        return [f"{at}: {line}" for line in problems_in(error, _refusing_class(error))]
    if isinstance(error, UserError):
        return [f"{at}: {line}" for line in error.problems]
    # From Python 3.12 on this adds Python's own "Did you mean".
    return [f"{at}: {list(traceback.TracebackException.from_exception(error).format_exception_only())[-1]}"]


def _line_of(error: BaseException, place: Place) -> str:
    """Return the last place, as file:line, at which `error` passed through the recipe or a module beside it."""
    at = shown(place.path)
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        beside = file.is_relative_to(place.root) and "site-packages" not in file.parts
        if file == place.path or (beside and not file.is_relative_to(_OUR_FOLDER)):
            at = f"{shown(file)}:{frame.lineno}"
    return at


def _refusing_class(error: pydantic.ValidationError) -> type | None:
    """Return the class of the part that rejected its fields, or None if it is not found.

    The error holds only the name of the class, but the traceback holds the instance in the frame of its __init__.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for value in frame.f_locals.values():
            if type(value).__name__ == error.title and dataclasses.is_dataclass(value):
                return type(value)
    return None


def _recipe_in(module: ModuleType, attribute: str, path: Path, recipe_type: type) -> Any:
    kind = recipe_type.__name__
    if not hasattr(module, attribute):
        recipes = [name for name, value in vars(module).items() if isinstance(value, recipe_type)]
        hint = did_you_mean(attribute, recipes) or f"; write {attribute} = {kind}(...)"
        raise UserError(f"{shown(path)}: has no {attribute!r}{hint}")
    recipe = getattr(module, attribute)
    if isinstance(recipe, recipe_type):
        return recipe
    held = "a function; call it" if callable(recipe) and not isinstance(recipe, type) else f"a {type(recipe).__name__}"
    raise UserError(f"{shown(path)}: {attribute} must be a {kind}, and is {held}")
