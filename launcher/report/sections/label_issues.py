"""Training images whose labels the other images contradict, and validation images found among the training images."""

from __future__ import annotations

from launcher.recipe.protocols import ImageSource
from launcher.report.facts import Facts
from launcher.report.formats import percent
from launcher.report.inspection import read_explanation
from launcher.report.page import Section
from launcher.report.samples import common_folder
from launcher.report.thumbnails import Thumbnail, small
from launcher.text import plural

LABELS, PAIRS = 24, 12


def section(facts: Facts) -> Section | None:
    """Build the section, or return None for a run without explanation."""
    contents = read_explanation(facts)
    if contents is None:
        return None
    rows = [row for row in contents.labels[:LABELS] if _margin(row) < 0]
    folder = common_folder([row["image"] for row in contents.labels])
    labels = [
        {
            "thumbnail": _thumbnail(facts, "train", row["index"]),
            "name": row["image"],
            "short": row["image"].removeprefix(folder),
            "truth": row["label"],
            "prediction": row["suggested"],
            "how": f"{percent(float(row['probability of suggested']), 0)} % against "
            f"{percent(float(row['probability of label']), 0)} %",
        }
        for row in rows
    ]
    pairs = [
        {
            "val": (_thumbnail(facts, "val", row["validation index"]), row["validation image"]),
            "train": (_thumbnail(facts, "train", row["training index"]), row["training image"]),
            "alike": percent(float(row["of pixels"]), 0),
            "mirrored": row["mirrored"] == "yes",
            "differs": row["same target"] == "no",
        }
        for row in contents.duplicates[:PAIRS]
    ]
    total = contents.summary.get("suspicious") or 0
    return Section(
        "label_issues",
        "Data to check",
        {
            "labels": labels,
            "labels_count": f"{len(labels)} of {total:,}" if total > len(labels) else plural(total, "image"),
            "looked": plural(int(contents.summary.get("train", 0)), "training image"),
            "weights": contents.summary.get("features", ""),
            "with_labels": contents.summary.get("suspicious") is not None,
            "pairs": pairs,
            "leaked": int(contents.summary.get("leaked", 0)),
            "share": percent(contents.summary.get("leaked", 0) / max(1, contents.summary.get("val", 1))),
            "pairs_count": plural(int(contents.summary.get("duplicates", 0)), "pair"),
        },
    )


def _margin(row: dict[str, str]) -> float:
    return float(row["probability of label"]) - float(row["probability of suggested"])


def _thumbnail(facts: Facts, split: str, index: str) -> Thumbnail | None:
    if facts.splits is None:
        return None
    source: ImageSource = getattr(facts.splits, split).images
    try:
        return small(source, int(index))
    except Exception:  # moved or broken since, and a user's own source may raise anything
        return None
