"""Labels that the other images contradict: leave-one-out predictions of a ridge regression on the features.

Each image is predicted by a fit that has not seen its label. For ridge regression this takes no refitting: the
left-out residual is the residual of the whole fit over 1 - h, where h is the image's own weight in its prediction
(PRESS; Allen 1974, https://doi.org/10.1080/00401706.1974.10489157). Images are ranked as in confident learning
(https://arxiv.org/abs/1911.00068): by how far the probability of the label falls behind that of another one.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F

RELATIVE_L2S = torch.logspace(-4, 2, 13, dtype=torch.float64)
SCALES = torch.logspace(-2, 8, 41, base=2, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Suspicion:
    """The suspicion against the label of an image, or against one of its labels."""

    index: int
    """The index of the image among the features."""
    given: str
    suggested: str
    probability_of_given: float
    probability_of_suggested: float

    @property
    def margin(self) -> float:
        """The difference of the two probabilities: the smaller, the more suspicious."""
        return self.probability_of_given - self.probability_of_suggested


def suspicious_classes(features: torch.Tensor, targets: torch.Tensor, names: tuple[str, ...]) -> list[Suspicion]:
    """Return all images, the most suspicious first, from `features` float (n, d) and `targets` int64 (n,)."""
    goals = 2 * F.one_hot(targets, len(names)).double() - 1
    outputs = left_out(features, goals)
    losses = [float(F.cross_entropy(outputs * scale, targets)) for scale in SCALES.tolist()]
    probabilities = (outputs * float(SCALES[losses.index(min(losses))])).softmax(dim=1)
    of_label = probabilities.gather(1, targets.unsqueeze(1)).squeeze(1)
    others = probabilities.scatter(1, targets.unsqueeze(1), -1.0)
    best, rivals = others.max(dim=1)
    return [
        Suspicion(
            index, names[int(targets[index])], names[int(rivals[index])], float(of_label[index]), float(best[index])
        )
        for index in (of_label - best).argsort(stable=True).tolist()
    ]


def suspicious_labels(features: torch.Tensor, targets: torch.Tensor, names: tuple[str, ...]) -> list[Suspicion]:
    """Return all labels of all images, the most suspicious first, from `targets` of 0 and 1 (n, labels)."""
    outputs = left_out(features, 2 * targets.double() - 1)
    losses = [float(F.binary_cross_entropy_with_logits(outputs * scale, targets.double())) for scale in SCALES.tolist()]
    probabilities = (outputs * float(SCALES[losses.index(min(losses))])).sigmoid()
    of_given = torch.where(targets > 0.5, probabilities, 1 - probabilities)
    suspicions = []
    for flat in of_given.flatten().argsort(stable=True).tolist():
        index, label = divmod(flat, len(names))
        has, lacks = names[label], f"not {names[label]}"
        given, suggested = (has, lacks) if targets[index, label] > 0.5 else (lacks, has)
        probability = float(of_given[index, label])
        suspicions.append(Suspicion(index, given, suggested, probability, 1 - probability))
    return suspicions


def left_out(features: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
    """Return the leave-one-out predictions, float64 (n, k), with the L2 penalty of the least squared error."""
    x, y = features.double(), goals.double()
    mean = y.mean(dim=0)
    x, y = x - x.mean(dim=0), y - mean
    count, width = x.shape
    if width <= count:
        values, vectors = torch.linalg.eigh(x.T @ x)
        rotated = x @ vectors
    else:
        values, vectors = torch.linalg.eigh(x @ x.T)
        rotated = vectors * values.clamp(min=0).sqrt()
    values = values.clamp(min=0)
    projected, squares = rotated.T @ y, rotated.square()
    best, least = y, torch.inf
    for l2 in (RELATIVE_L2S * values.sum() / width).tolist():
        fitted = rotated @ (projected / (values + l2).unsqueeze(1))
        own_weight = squares @ (1 / (values + l2)) + 1 / count  # 1 / count: its weight in the mean
        residuals = (y - fitted) / (1 - own_weight).clamp(min=1e-9).unsqueeze(1)
        error = float(residuals.square().mean())
        if error < least:
            best, least = y - residuals, error
    return best + mean
