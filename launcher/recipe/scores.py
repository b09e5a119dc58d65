"""The functions of torchmetrics that tasks measure with, without what the package imports beside them.

Where they are installed, `import torchmetrics` imports scipy.signal (for an old name, which a package for the quality
of speech asks for), matplotlib (to draw) and transformers (to measure texts). In each process of a training they took
1.4 s of a core and 111 MB. So stand-ins are in their places while torchmetrics is imported. They hand on to the real
ones later, so that its drawings can still be made.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

_LEFT_OUT = ("scipy.signal", "matplotlib", "matplotlib.axes", "matplotlib.pyplot", "transformers")


class _Later(types.ModuleType):
    """In the place of a module, or of something in one. Nothing is imported before `real` is set."""

    real = False

    def __init__(self, module: str, name: str = "") -> None:
        super().__init__(module)
        self.__spec__ = ModuleSpec(module, None)
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if _Later.real:
            return getattr(self._found(), name)
        name = f"{self._name}.{name}".lstrip(".")
        return sys.modules.get(f"{self.__name__}.{name}") or _Later(self.__name__, name)

    def __call__(self, *values: Any, **named: Any) -> Any:
        if _Later.real:
            return self._found()(*values, **named)
        # As a decorator, which at first is made: the function is left as it is.
        return values[0] if values and isinstance(values[0], types.FunctionType) else self

    def __instancecheck__(self, value: object) -> bool:
        return isinstance(value, self._found())

    def _found(self) -> Any:
        found: Any = importlib.import_module(self.__name__)
        for name in filter(None, self._name.split(".")):
            found = getattr(found, name)
        return found


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    """None of _LEFT_OUT is imported within, unless it has been; nothing is changed where torchmetrics has been."""
    names = [name for name in _LEFT_OUT if name not in sys.modules] if "torchmetrics" not in sys.modules else []
    sys.modules.update({name: _Later(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        _Later.real = True


with _left_out():
    from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score
    from torchmetrics.functional.classification import (
        binary_auroc,
        binary_average_precision,
        multiclass_accuracy,
        multiclass_auroc,
        multiclass_f1_score,
        multiclass_recall,
        multilabel_auroc,
        multilabel_average_precision,
        multilabel_exact_match,
        multilabel_f1_score,
        multilabel_recall,
    )

__all__ = [
    "binary_auroc",
    "binary_average_precision",
    "mean_absolute_error",
    "mean_squared_error",
    "multiclass_accuracy",
    "multiclass_auroc",
    "multiclass_f1_score",
    "multiclass_recall",
    "multilabel_auroc",
    "multilabel_average_precision",
    "multilabel_exact_match",
    "multilabel_f1_score",
    "multilabel_recall",
    "r2_score",
]
