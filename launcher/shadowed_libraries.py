"""Files beside a recipe, or in the current folder, that Python would import in place of a library.

This module imports only modules that are already loaded: any other might be the one that is shadowed.
"""

from __future__ import annotations

import os
import sys

LIBRARIES = frozenset(
    [
        "accelerate",
        "click",
        "fsspec",
        "huggingface_hub",
        "jinja2",
        "numpy",
        "packaging",
        "pandas",
        "PIL",
        "psutil",
        "pyarrow",
        "pydantic",
        "pydantic_core",
        "requests",
        "rich",
        "safetensors",
        "scipy",
        "simplejpeg",
        "sklearn",
        "sympy",
        "torch",
        "torchmetrics",
        "torchvision",
        "tqdm",
        "typer",
        "typing_extensions",
        "yaml",
    ]
)
"""Libraries that every run imports, directly or through another library."""
WITH_PART = {"HuggingFace": "datasets", "Timm": "timm"}
"""Libraries that a run imports if its recipe has a part of this class."""
_HARMLESS = frozenset({"antigravity", "idlelib", "lib2to3", "test", "this", "tkinter", "turtle", "turtledemo"})
"""Modules of Python itself that no library imports."""


def shadowing(folder: str, libraries: frozenset[str] = LIBRARIES) -> list[str]:
    """Return the files and packages in a folder that have the name of a library or of a module of Python itself."""
    try:
        names = sorted(os.listdir(folder or "."))  # noqa: PTH208 - pathlib may be what is shadowed
    except OSError:
        return []
    if any(os.path.realpath(entry) == os.path.realpath(folder or ".") for entry in sys.path[1:] if entry):
        here = os.path.join(folder, "os.py"), os.path.join(folder, "torch", "version.py")  # noqa: PTH118
        if any(os.path.exists(file) for file in here):  # noqa: PTH110 - the folder holds the libraries themselves
            return []
    paths = []
    for name in names:
        path = os.path.join(folder, name)  # noqa: PTH118
        is_package = os.path.isfile(os.path.join(path, "__init__.py"))  # noqa: PTH113, PTH118
        module = name if is_package else name[:-3] if name.endswith(".py") else ""
        if module in libraries or (module in sys.stdlib_module_names and module not in _HARMLESS):
            paths.append(path)
    return paths


def line_of(path: str) -> str:
    """Return the error line for a file that shadows a library or a module of Python."""
    module = os.path.basename(path).removesuffix(".py")  # noqa: PTH119
    owner = "a module of Python itself" if module in sys.stdlib_module_names else f"a library, {module}, that is needed"
    return f"{path}: Python would import it in place of {owner}; rename it, or move it into a folder of its own"


def end_if_shadowed() -> None:
    """Exit `python -m launcher` with a line for each shadowing file in the current folder, where Python looks first.

    To be called while the package is being imported: everything after that imports libraries.
    """
    if sys.argv[:1] != ["-m"]:
        return
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        sys.stderr.write("error: the current folder is gone; change to one that is there (cd)\n")
        sys.exit(2)
    if getattr(sys.flags, "safe_path", False):
        return
    lines = [f"error: {line_of(path)}\n" for path in shadowing("")]
    if lines:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write("".join(lines))
        sys.exit(2)
