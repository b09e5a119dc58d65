"""Ridge regression for a grid of L2 by one eigendecomposition.

The method is that of big_vision's few-shot evaluator (https://arxiv.org/abs/2010.11929, appendix). The fit is computed
from sums over samples, which can be accumulated over batches and processes, so that only a matrix as wide as the
features is held. If there are fewer samples than features, a matrix as wide as the number of samples is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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


class Ridge:
    """The fits min |y - x W - b|^2 + l2 |W|^2 for any L2; the bias b, which is not penalised, may be left out."""

    mean_eigenvalue: float
    """Mean eigenvalue of the features' scatter matrix: an L2 of this size weighs as much as the data in an average
    direction. It is 0 if the features are the same for all samples."""
    _matrix: torch.Tensor
    _goals: torch.Tensor
    _mean_x: torch.Tensor
    _mean_y: torch.Tensor

    def fits(self, l2s: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield weight (k, d) and bias (k,) in float64 for each L2, which scikit-learn's Ridge calls alpha."""
        values, vectors = torch.linalg.eigh(self._matrix)
        values = values.clamp(min=0)  # rounding makes some of the smallest negative
        projected = vectors.T @ self._goals
        for l2 in l2s.tolist():
            yield self._with_bias(vectors @ (projected / (values + l2).unsqueeze(1)))

    def fit(self, l2: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight and bias for one L2, without an eigendecomposition."""
        penalised = self._matrix.clone()
        penalised.diagonal().add_(l2)
        return self._with_bias(torch.cholesky_solve(self._goals, torch.linalg.cholesky(penalised)))

    def _with_bias(self, solution: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self._weight(solution)
        return weight.T, self._mean_y - self._mean_x @ weight

    def _weight(self, solution: torch.Tensor) -> torch.Tensor:
        """Return the weight (d, k) that solves (matrix + l2 I) solution = goals."""
        return solution


class RidgeOfMoments(Ridge):
    """Ridge regression from sums over samples, by the (d, d) scatter matrix of the features."""

    def __init__(self, moments: Moments, *, with_bias: bool = True) -> None:
        count, x, y, xx, xy = (moments.sums[name] for name in ("count", "x", "y", "xx", "xy"))
        if with_bias:
            self._mean_x, self._mean_y = x / count, y / count
            self._matrix, self._goals = xx - torch.outer(x, self._mean_x), xy - torch.outer(x, self._mean_y)
        else:
            self._mean_x, self._mean_y = torch.zeros_like(x), torch.zeros_like(y)
            self._matrix, self._goals = xx, xy
        self.mean_eigenvalue = _beyond_rounding(float(self._matrix.diagonal().mean()), float(xx.diagonal().mean()))


class RidgeOfSamples(Ridge):
    """Ridge regression from features (N, d) and goals (N, k), for N up to about d.

    The fits are the same as those of `RidgeOfMoments`, but computed from the (N, N) inner products of the samples.
    """

    def __init__(self, features: torch.Tensor, goals: torch.Tensor, *, with_bias: bool = True) -> None:
        self._x, self._goals = features.double(), goals.double()
        self._mean_x, self._mean_y = torch.zeros_like(self._x[0]), torch.zeros_like(self._goals[0])
        if with_bias:
            self._mean_x, self._mean_y = self._x.mean(dim=0), self._goals.mean(dim=0)
            self._x, self._goals = self._x - self._mean_x, self._goals - self._mean_y
        self._matrix = self._x @ self._x.T
        scatter = float(self._matrix.diagonal().sum()) / self._x.shape[1]
        self.mean_eigenvalue = _beyond_rounding(scatter, float(features.double().square().sum(dim=0).mean()))

    def _weight(self, solution: torch.Tensor) -> torch.Tensor:
        return self._x.T @ solution


def _beyond_rounding(scatter: float, square: float) -> float:
    """Return the scatter, or 0 if it can be the rounding error of features that are all the same.

    float32 has 7 digits, so squares that differ by less than 1e-13 of themselves do not really differ.
    """
    return 0.0 if scatter <= 1e-13 * square else scatter
