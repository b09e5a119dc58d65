"""The explanation of a run by `report --explain`: files in explanation/ of its run dir, for the report and for people.

suspicious_labels.csv    the training images (multi-label: each label of each image), the most suspicious first
near_duplicates.csv      validation images that are among the training images
map.csv                  the position of each validation image on the map
attention.json           Grad-CAM heat maps of the images that the report shows
explanation.json         the weights that were looked at, and the findings in numbers
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from launcher.errors import UserError
from launcher.files import json_text, replaced_folder
from launcher.inference.finished_run import FinishedRun, build_data, build_network, check_data
from launcher.recipe.protocols import Split, Splits
from launcher.recipe.transforms import evaluation
from launcher.report.inspect.features import Features, features_of
from launcher.report.inspect.grad_cam import check_installed, heat_maps
from launcher.report.inspect.label_issues import Suspicion, suspicious_classes, suspicious_labels
from launcher.report.inspect.near_duplicates import near_duplicates
from launcher.report.inspect.pca_map import plane
from launcher.report.samples import Samples
from launcher.report.sections.gallery import shown
from launcher.report.sections.grad_cam import overlay
from launcher.text import inert_cell
from launcher.training.accelerator import start_accelerator
from launcher.training.checked_images import checked_together
from launcher.training.images import EvaluationImages, collate
from launcher.training.launch import Launch
from launcher.training.setup import workers_of

if TYPE_CHECKING:
    from accelerate import Accelerator

FOLDER = "explanation"
BATCH = 8


def explain(finished: FinishedRun, samples: Samples, launch: Launch, report: Callable[[str], None]) -> Path:
    """Write the explanation of a run, and return its folder.

    Raises UserError if data, weights or grad-cam are missing, or the folder cannot be written.
    """
    check_installed()
    begin = time.perf_counter()
    accelerator = start_accelerator(finished.recipe, launch, finished.rundir.path)
    splits = check_data(finished, build_data(finished), checked_together(accelerator, report))
    target = finished.rundir.path / FOLDER
    try:
        features = features_of(accelerator, finished, splits, workers_of(launch), report)
        summary: dict[str, Any] = {"step": finished.step, "features": features.weights, "train": len(features.train)}
        with replaced_folder(target) as draft:
            summary |= _labels(finished, splits, features, draft)
            summary |= _duplicates(splits, features, draft)
            summary |= _map(splits, features, draft)
            summary |= _attention(accelerator, finished, splits, samples, draft)
            summary["seconds"] = time.perf_counter() - begin
            (draft / "explanation.json").write_text(json_text(summary, indent=1))
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror or error})") from error
    return target


def _labels(finished: FinishedRun, splits: Splits, features: Features, folder: Path) -> dict[str, Any]:
    kind = finished.recipe.task.target_kind
    targets = torch.as_tensor(splits.train.targets[features.of_training.numpy()])
    rows: list[Suspicion]
    if kind == "class":
        rows = suspicious_classes(features.train, targets, splits.names)
    elif kind == "labels":
        rows = suspicious_labels(features.train, targets, splits.names)
    else:
        return {"suspicious": None}
    header = ("rank", "image", "label", "suggested", "probability of label", "probability of suggested", "index")
    places = features.of_training.tolist()
    _write(
        folder / "suspicious_labels.csv",
        header,
        (
            (
                number,
                splits.train.images.name(places[row.index]),
                row.given,
                row.suggested,
                f"{row.probability_of_given:.6f}",
                f"{row.probability_of_suggested:.6f}",
                places[row.index],
            )
            for number, row in enumerate(rows, start=1)
        ),
    )
    return {"suspicious": sum(row.margin < 0 for row in rows)}


def _duplicates(splits: Splits, features: Features, folder: Path) -> dict[str, Any]:
    train, val = splits.train, splits.val
    places = features.of_training.tolist()
    pairs = near_duplicates(features.train, features.val, train.images, val.images, places)
    header = ("validation image", "training image", "similarity of features", "of pixels", "mirrored", "same target")
    _write(
        folder / "near_duplicates.csv",
        (*header, "validation index", "training index"),
        (
            (
                val.images.name(pair.val),
                train.images.name(places[pair.train]),
                f"{pair.similarity:.4f}",
                f"{pair.pixels:.4f}",
                "yes" if pair.mirrored else "no",
                "yes" if (val.targets[pair.val] == train.targets[places[pair.train]]).all() else "no",
                pair.val,
                places[pair.train],
            )
            for pair in pairs
        ),
    )
    return {"duplicates": len(pairs), "leaked": len({pair.val for pair in pairs}), "val": len(val)}


def _map(splits: Splits, features: Features, folder: Path) -> dict[str, Any]:
    places, share = plane(features.val_now)
    rows = ((splits.val.images.name(i), f"{x:.5g}", f"{y:.5g}") for i, (x, y) in enumerate(places.tolist()))
    _write(folder / "map.csv", ("image", "x", "y"), rows)
    return {"variance_shown": share}


def _attention(
    accelerator: Accelerator, finished: FinishedRun, splits: Splits, samples: Samples, folder: Path
) -> dict[str, Any]:
    """Write the Grad-CAM heat maps of the images in the report's gallery, for the predicted class."""
    if samples.kind != "classification" or len(samples) != len(splits.val):
        return {"attention": None}
    model = build_network(finished, len(splits.names)).to(accelerator.device)
    about = finished.preprocessing
    indices = [index for index in shown(samples) if splits.val.images.name(index) == samples.exact[index]]
    overlays: list[dict[str, Any]] = []
    for begin in range(0, len(indices), BATCH):
        some = indices[begin : begin + BATCH]
        images = _images(splits.val, some, finished).to(accelerator.device)
        maps = heat_maps(model, images, [int(samples.predictions[index]) for index in some])
        if maps is None:
            return {"attention": None}
        for index, image, heat in zip(some, images.cpu(), maps, strict=True):
            mean, std = (torch.tensor(values).view(3, 1, 1) for values in (about.mean, about.std))
            pixels = ((image * std + mean).clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy()
            overlays.append({"sample": index, **overlay(pixels, heat)})
    (folder / "attention.json").write_text(json_text(overlays))
    return {"attention": len(overlays)}


def _images(split: Split, indices: Sequence[int], finished: FinishedRun) -> torch.Tensor:
    dataset = EvaluationImages(split, evaluation(finished.preprocessing))
    return collate([dataset[index] for index in indices], dataset.transform).to(torch.device("cpu")).images


def _write(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows([inert_cell(cell) for cell in row] for row in rows)
