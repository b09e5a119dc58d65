"""A map of the validation images: the plane in which their features vary most (PCA)."""

from __future__ import annotations

import torch


def plane(features: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return positions (n, 2) on the plane for features (n, d), and the share of the variance that they show.

    The sign of each direction is chosen to make the position farthest from zero positive.
    """
    centred = features.double() - features.double().mean(dim=0)
    directions, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    places = torch.zeros(len(centred), 2, dtype=torch.float64)
    shown = min(2, len(sizes))
    places[:, :shown] = directions[:, :shown] * sizes[:shown]
    largest = places.abs().argmax(dim=0)
    places *= torch.where(places[largest, torch.arange(2)] < 0, -1.0, 1.0)
    total = float(sizes.square().sum())
    return places, float(sizes[:shown].square().sum()) / total if total else 0.0
