"""Ridge regression from sums over samples: for a grid of L2 by one eigendecomposition.

As big_vision's few-shot evaluator does (https://arxiv.org/abs/2010.11929, appendix). The sums can be taken over batches
and processes, so no more than a matrix of the features' width is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch


class Moments:
    """Sums over samples of features x (N, d) and goals y (N, k), in float64: what a linear fit needs to know."""

    def __init__(self, num_features: int, num_outputs: int, device: torch.device | str = "cpu") -> None:
        d, k = num_features, num_outputs
        shapes = {"count": (1,), "x": (d,), "y": (k,), "xx": (d, d), "xy": (d, k)}
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def add(self, features: torch.Tensor, goals: torch.Tensor) -> None:
        sums = self.sums
        x, y = (tensor.to(sums["x"].device, torch.float64) for tensor in (features, goals))
        sums["count"] += len(x)
        sums["x"] += x.sum(dim=0)
        sums["y"] += y.sum(dim=0)
        sums["xx"].addmm_(x.T, x)
        sums["xy"].addmm_(x.T, y)

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Of each sum, such as to add up those of all processes."""
        self.sums = {name: function(value) for name, value in self.sums.items()}

    def __add__(self, other: Moments) -> Moments:
        both = Moments(0, 0)
        both.sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return both


class Ridge:
    """The fits of min |y - x W - b|^2 + l2 |W|^2 for any L2; b, which is not penalised, only `with_bias`."""

    def __init__(self, moments: Moments, *, with_bias: bool = True) -> None:
        count, x, y, xx, xy = (moments.sums[name] for name in ("count", "x", "y", "xx", "xy"))
        self._mean_x, self._mean_y = x / count, y / count
        if with_bias:
            xx = xx - torch.outer(x, self._mean_x)
            xy = xy - torch.outer(x, self._mean_y)
        else:
            self._mean_x, self._mean_y = torch.zeros_like(x), torch.zeros_like(y)
        values, self._vectors = torch.linalg.eigh(xx)
        self._values = values.clamp(min=0)  # rounding makes some of the smallest negative
        self._projected = self._vectors.T @ xy
        self.scale_of_l2 = float(self._values.mean())
        """The mean eigenvalue: an L2 of this size weighs as much as the data in an average direction."""

    def fit(self, l2: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (k, d) and bias (k,), in float64; `l2` as the alpha of scikit-learn's Ridge."""
        weight = self._vectors @ (self._projected / (self._values + l2).unsqueeze(1))
        return weight.T, self._mean_y - self._mean_x @ weight

    def fits(self, relative_l2s: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Those for several L2, each a multiple of `scale_of_l2`."""
        for relative in relative_l2s.tolist():
            yield self.fit(relative * self.scale_of_l2)
