"""The functions of torchmetrics that tasks measure with, without what the package imports beside them.

Where SciPy is installed, `import torchmetrics` imports scipy.signal to give it back an old name, `hamming`, which a
package for the quality of speech asks for. In each process of a training that took 0.4 of 4.9 s of a core, and 58 MB.
So an empty module stands in its place while torchmetrics is imported; who imports scipy.signal later gets the real one.
"""

from __future__ import annotations

import sys
import types


def _stand_in() -> types.ModuleType | None:
    """What was put in the place of scipy.signal; None where it, or torchmetrics, is there already."""
    if "scipy.signal" in sys.modules or "torchmetrics" in sys.modules:
        return None
    module = types.ModuleType("scipy.signal")
    module.hamming = None  # type: ignore[attr-defined]
    sys.modules["scipy.signal"] = module
    return module


_module = _stand_in()
try:
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
finally:
    if _module is not None:
        del sys.modules["scipy.signal"]

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
