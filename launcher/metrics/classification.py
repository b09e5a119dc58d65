"""Metrics of one class per sample. Outputs are logits (samples, classes), targets int64 (samples,)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from launcher.metrics.formula import Formula, Share, Values
from launcher.metrics.ranking import Ranking
from launcher.text import plural

MOST_LIKELY = 5


def formulas(outputs: torch.Tensor, targets: torch.Tensor, names: Sequence[str], *, keep: bool) -> list[Formula]:
    """Return the formulas of accuracy, macro F1, loss, top-5 accuracy, AUROC, and the recall of each class.

    Top-5 accuracy is there for more than five classes. Macro F1 is the mean over the classes that occur, as target or
    as prediction, and AUROC the mean over each class against the others. `keep` keeps the rankings of the classes in
    memory, for formulas that are used more than once.
    """
    count = len(names)
    predicted = outputs.argmax(1)
    right, within = _right(outputs, targets)
    losses = F.cross_entropy(outputs.double(), targets, reduction="none")

    def sums(weights: torch.Tensor) -> Values:
        of_class, of_prediction, of_right = (
            torch.zeros(len(weights), count, dtype=torch.float64).index_add_(1, to, weighted)
            for to, weighted in ((targets, weights), (predicted, weights), (targets, weights * right.double()))
        )
        total = weights.sum(1)
        recalls = of_right / of_class
        f1 = 2 * of_right / (of_class + of_prediction)  # NaN for a class that does not occur
        values = {
            "accuracy": weights @ right.double() / total,
            "macro_f1": f1.nanmean(1),
            "loss": weights @ losses / total,
        }
        if count > MOST_LIKELY:
            values["top5_accuracy"] = weights @ within.double() / total
        return values | {f"recall/{name}": recalls[:, i] for i, name in enumerate(names)}

    probabilities = outputs.double().softmax(1)

    def rankings() -> Iterator[Ranking]:
        return (Ranking(probabilities[:, i], targets == i) for i in range(count))

    kept = list(rankings()) if keep else None

    def ranks(weights: torch.Tensor) -> Values:
        values = torch.stack([ranking.auroc(weights) for ranking in kept or rankings()], dim=1)
        return {"auroc": values.nanmean(1)}

    return [Formula(sums, work=4, width=4), Formula(ranks, work=4 * count, width=4)]


def shares(outputs: torch.Tensor, targets: torch.Tensor, names: Sequence[str]) -> dict[str, Share]:
    """Return the metrics that are shares of all samples or of the samples of a class."""
    right, within = _right(outputs, targets)
    shares = {
        "accuracy": Share(int(right.sum()), len(targets)),
        "top5_accuracy": Share(int(within.sum()), len(targets)),
    }
    supports = torch.bincount(targets, minlength=len(names)).tolist()
    of_right = torch.bincount(targets[right], minlength=len(names)).tolist()
    return shares | {f"recall/{name}": Share(of_right[i], supports[i]) for i, name in enumerate(names) if supports[i]}


def undefined(targets: torch.Tensor, names: Sequence[str]) -> dict[str, str]:
    """Return the metrics that are not defined for these targets, with the reasons."""
    counts = torch.bincount(targets, minlength=len(names)).tolist()
    absent = [name for name, count in zip(names, counts, strict=True) if not count]
    if not absent:
        return {}
    reasons = {f"recall/{name}": f"it has no image of {name!r}" for name in absent}
    others = f" and {plural(len(absent) - 3, 'other class', 'other classes', spec='')}" if len(absent) > 3 else ""
    return reasons | {"auroc": f"it has no image of {', '.join(map(repr, absent[:3]))}{others}"}


def _right(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return whether each target is the likeliest class and whether it is among the likeliest, bool (samples,) each."""
    likeliest = outputs.topk(min(MOST_LIKELY, outputs.shape[1]), dim=1).indices
    return outputs.argmax(1) == targets, (likeliest == targets[:, None]).any(1)
