"""Ridge regression for a grid of L2 by one eigendecomposition.

The method is that of big_vision's few-shot evaluator (https://arxiv.org/abs/2010.11929, appendix). The fit is computed
from sums over samples, which can be accumulated over batches and processes, so that only a matrix as wide as the
features is held. If there are fewer samples than features, a matrix as wide as the number of samples is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch


class Moments:
    """Sums over samples of features x (N, d) and goals y (N, k) in float64, which are all that a linear fit needs."""

    def __init__(self, num_features: int, num_outputs: int, device: torch.device | str = "cpu") -> None:
        d, k = num_features, num_outputs
        shapes = {"count": (1,), "x": (d,), "y": (k,), "xx": (d, d), "xy": (d, k)}
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}

    def add(self, features: torch.Tensor, goals: torch.Tensor) -> None:
        """Add a batch of features (n, d) and goals (n, k)."""
        sums = self.sums
        x, y = (tensor.to(sums["x"].device, torch.float64) for tensor in (features, goals))
        sums["count"] += len(x)
        sums["x"] += x.sum(dim=0)
        sums["y"] += y.sum(dim=0)
        sums["xx"].addmm_(x.T, x)
        sums["xy"].addmm_(x.T, y)

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Apply a function to each sum, such as one that adds up the sums of all processes."""
        self.sums = {name: function(value) for name, value in self.sums.items()}

    def __add__(self, other: Moments) -> Moments:
        both = Moments(0, 0)
        both.sums = {name: value + other.sums[name] for name, value in self.sums.items()}
        return both


class Ridge(Protocol):
    """The fits min |y - x W - b|^2 + l2 |W|^2 for any L2; the bias b, which is not penalised, may be left out."""

    mean_eigenvalue: float
    """Mean eigenvalue of the features' scatter matrix: an L2 of this size weighs as much as the data in an average
    direction. It is 0 if the features are the same for all samples."""

    def fits(self, l2s: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield weight (k, d) and bias (k,) in float64 for each L2, which scikit-learn's Ridge calls alpha."""
        ...

    def fit(self, l2: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias for one L2, without an eigendecomposition."""
        ...


class RidgeOfMoments:
    """Ridge regression from sums over samples, by the (d, d) scatter matrix of the features."""

    def __init__(self, moments: Moments, *, with_bias: bool = True) -> None:
        count, x, y, xx, xy = (moments.sums[name] for name in ("count", "x", "y", "xx", "xy"))
        if with_bias:
            self._mean_x, self._mean_y = x / count, y / count
            self._xx, self._xy = xx - torch.outer(x, self._mean_x), xy - torch.outer(x, self._mean_y)
        else:
            self._mean_x, self._mean_y = torch.zeros_like(x), torch.zeros_like(y)
            self._xx, self._xy = xx, xy
        self.mean_eigenvalue = _beyond_rounding(float(self._xx.diagonal().mean()), float(xx.diagonal().mean()))

    def fits(self, l2s: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        values, vectors = torch.linalg.eigh(self._xx)
        values = values.clamp(min=0)  # rounding makes some of the smallest negative
        projected = vectors.T @ self._xy
        for l2 in l2s.tolist():
            yield self._with_bias(vectors @ (projected / (values + l2).unsqueeze(1)))

    def fit(self, l2: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self._with_bias(_solved(self._xx, l2, self._xy))

    def _with_bias(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return weight.T, self._mean_y - self._mean_x @ weight


class RidgeOfSamples:
    """Ridge regression from features (N, d) and goals (N, k), for N up to about d.

    The fits are the same as those of `RidgeOfMoments`, but computed from the (N, N) inner products of the samples.
    """

    def __init__(self, features: torch.Tensor, goals: torch.Tensor, *, with_bias: bool = True) -> None:
        self._x, self._y = features.double(), goals.double()
        self._mean_x, self._mean_y = torch.zeros_like(self._x[0]), torch.zeros_like(self._y[0])
        if with_bias:
            self._mean_x, self._mean_y = self._x.mean(dim=0), self._y.mean(dim=0)
            self._x, self._y = self._x - self._mean_x, self._y - self._mean_y
        self._products = self._x @ self._x.T
        self.mean_eigenvalue = _beyond_rounding(
            float(self._products.diagonal().sum()) / self._x.shape[1],
            float(features.double().square().sum(dim=0).mean()),
        )

    def fits(self, l2s: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        values, vectors = torch.linalg.eigh(self._products)
        values = values.clamp(min=0)
        projected = vectors.T @ self._y
        for l2 in l2s.tolist():
            yield self._with_bias(vectors @ (projected / (values + l2).unsqueeze(1)))

    def fit(self, l2: float) -> tuple[torch.Tensor, torch.Tensor]:
        return self._with_bias(_solved(self._products, l2, self._y))

    def _with_bias(self, dual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self._x.T @ dual
        return weight.T, self._mean_y - self._mean_x @ weight


def _beyond_rounding(scatter: float, square: float) -> float:
    """Return the scatter, or 0 if it can be the rounding error of features that are all the same.

    float32 has 7 digits, so squares that differ by less than 1e-13 of themselves do not really differ.
    """
    return 0.0 if scatter <= 1e-13 * square else scatter


def _solved(matrix: torch.Tensor, l2: float, goals: torch.Tensor) -> torch.Tensor:
    """Solve (matrix + l2 I) w = goals for a positive semidefinite matrix."""
    penalised = matrix.clone()
    penalised.diagonal().add_(l2)
    return torch.cholesky_solve(goals, torch.linalg.cholesky(penalised))
