"""The rules that turn findings into settings; each decision carries its reason, with numbers.

They are the rules of thumb of transfer learning, not tuned to any data set: the fewer images there are of a class, the
less of the network is trained, the smaller the steps are, and the gentler the augmentation is.
"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from launcher.init.decision import Call, Decision
from launcher.init.findings import DataFindings
from launcher.init.images import ImageFindings
from launcher.init.machine import Machine
from launcher.init.networks import Chosen, choose
from launcher.text import level, plural

FEW, SOME, MANY = 20, 200, 1000
"""Images of a class (or of a label, or a tenth of all images for a regression): below FEW only the head is trained,
below SOME the backbone takes the smallest steps, and from MANY on the largest."""

IMBALANCED, EXTREME = 3, 100
"""Ratios of the largest class to the smallest: from IMBALANCED on the loss is weighted, but not beyond EXTREME, where
the weights would be so large that single images decide."""

STEPS_OF_A_PROBE = 300
STEPS_ON_GPU, EPOCHS_ON_GPU = 2_000, (5, 20)
STEPS_ON_CPU, EPOCHS_ON_CPU = 400, (2, 5)
"""Optimizer steps that fine-tuning should take, and the fewest and the most epochs for it."""

PART_OF_AN_EPOCH = 4
"""The fewest steps in an epoch, as far as the images suffice."""

NATIVE = 224
"""Pixels a side, at which all networks to begin with were trained."""
SMALLEST = 64
"""The fewest pixels a side; below, the features of networks that halve the side five times have no extent left."""


def decide(data: DataFindings, images: ImageFindings, machine: Machine) -> list[Decision]:
    """Decide on every setting of the recipe, in the order of its fields."""
    train, amount = len(data.splits.train), _images_of_each(data)
    batch, batch_why = _batch_size(train, machine)
    plan = _freeze_plan(data, amount, math.ceil(train / batch), machine)
    augment = _augment(data, amount)
    optim_why = "The rate of the head; the plan scales it for the backbone."
    decisions = [
        _backbone(choose(train, machine), images, machine),
        Decision("head", Call("heads.Linear", {}), f"One layer on pretrained features; outputs: {_outputs(data)}."),
        _task(data),
        _data(data, images),
        plan,
        Decision("optim", Call("optim.AdamW", {"lr": 1e-3}), optim_why),
        augment,
        Decision("batch_size", batch, batch_why),
    ]
    if len(plan.value) == 1 and augment.value.fields.get("preset") != "none":  # "none" has one view of each image
        why = "Augmented views of each image whose features are stored: the backbone is frozen throughout."
        decisions.append(Decision("cache_views", 4, why))
    if machine.gpus:
        why = "float32 or bf16, whichever is faster where the run begins."
        decisions.append(Decision("mixed_precision", "auto", why))
    return decisions


def counts_of_classes(data: DataFindings) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the number of training images of each class or label."""
    targets = data.splits.train.targets
    if data.target_kind == "class":
        return np.bincount(targets, minlength=len(data.splits.names)).astype(np.int64)
    counts: np.ndarray[Any, np.dtype[np.int64]] = targets.sum(axis=0).astype(np.int64)
    return counts


def is_imbalanced(data: DataFindings) -> bool:
    """Return whether the largest class has at least IMBALANCED times the images of the smallest."""
    if data.target_kind != "class":
        return False
    counts = counts_of_classes(data)
    return bool(counts.max() >= IMBALANCED * counts.min())


def _images_of_each(data: DataFindings) -> int:
    """Return the number of images from which each output is learned."""
    train = len(data.splits.train)
    if data.target_kind == "class":
        return train // len(data.splits.names)
    if data.target_kind == "labels":
        return int(np.median(counts_of_classes(data)))
    return train // 10


def _of_each(data: DataFindings, amount: int) -> str:
    train = len(data.splits.train)
    if data.target_kind == "class":
        return f"{plural(train, 'image')}, {plural(_outputs(data), 'class', 'classes', spec='')}: {amount:,} of each"
    if data.target_kind == "labels":
        return f"{plural(train, 'image')}, {plural(_outputs(data), 'label', spec='')}: {amount:,} with a label (median)"
    return f"{plural(train, 'image')} for {plural(_outputs(data), 'number', spec='')}"


def _outputs(data: DataFindings) -> int:
    return len(data.splits.names)


def _backbone(chosen: Chosen, images: ImageFindings, machine: Machine) -> Decision:
    network = chosen.network
    fields: dict[str, Any] = {"name": network.name, "weights": network.weights, **network.extra}
    here = (
        "its weights are on this machine"
        if chosen.on_disk
        else f"its weights ({network.megabytes} MB) are downloaded at the first start"
    )
    why = f"{chosen.why[0].upper()}{chosen.why[1:]} ({network.gflops:g} GFLOPs an image); {here}."
    size = image_size_for(images.shortest)
    source = "torchvision" if network.part == "Torchvision" else "timm"
    brief = f"{network.name} ({source}) at {size or NATIVE} px"
    if size is not None:
        fields["image_size"] = size
        why += (
            f" Images of {images.width}x{images.height} pixels ({'all' if images.same_size else 'median'}): {NATIVE} "
            f"px, as the weights were trained, would cost {(NATIVE / size) ** 2:.1f} times as much and show no more."
        )
    return Decision("backbone", Call(f"backbones.{network.part}", fields), why, brief)


def image_size_for(shortest: int) -> int | None:
    """Return the least multiple of 32 that shows all pixels, or None if it is not below the size of the pretraining."""
    size = max(SMALLEST, math.ceil(shortest / 32) * 32)
    return size if size < NATIVE else None


def _task(data: DataFindings) -> Decision:
    counts = counts_of_classes(data) if data.target_kind != "values" else np.zeros(1)
    names = data.splits.names
    if data.target_kind == "values":
        values = data.splits.train.targets
        ranges = [
            f"{name} {level(low, high - low)} to {level(high, high - low)}"
            for name, low, high in zip(names, values.min(0), values.max(0), strict=True)
        ]
        shown = ", ".join(ranges[:4]) + (" ..." if len(ranges) > 4 else "")
        return Decision("task", Call("tasks.Regression", {}), f"Numbers: {shown} (normalised inside the task).")
    smallest, largest = int(counts.min()), int(counts.max())
    if data.target_kind == "labels":
        rare = names[int(counts.argmin())]
        why = (
            f"A label is on {smallest:,} ({rare}) to {largest:,} of {plural(len(data.splits.train), 'image')}. The "
            "metric, mean average precision, needs no weights; `evaluate` fits a threshold for each label."
        )
        if (data.splits.train.targets.sum(axis=1) == 1).all():
            why += " Each image has exactly one label: a column of class names would make it a classification."
        return Decision("task", Call("tasks.MultiLabel", {}), why)
    fields: dict[str, Any] = {"label_smoothing": 0.1}
    why = f"Classes have {smallest:,} to {plural(largest, 'training image')}"
    if smallest == largest:
        why = f"Each class has {plural(smallest, 'training image')}"
    if not is_imbalanced(data):
        why += ": balanced enough to need no weights."
    elif largest > EXTREME * max(1, smallest):
        why += (
            f", {largest // max(1, smallest):,} times as many: too uneven for weights; more images of rare ones help."
        )
    else:
        fields["class_weights"] = "balanced"
        why += f", {largest / smallest:.1f} times as many: weighted in the loss."
    return Decision("task", Call("tasks.Classification", fields), why)


def _data(data: DataFindings, images: ImageFindings) -> Decision:
    fields = dict(data.fields)
    train, val = len(data.splits.train), len(data.splits.val)
    source = data.validation or f"a random part of {'each class' if data.target_kind == 'class' else 'the images'}"
    why = f"{plural(train, 'image')} to train on, {val:,} to validate on: {source}."
    if images.broken:
        fields["on_bad_image"] = "skip"
        why += (
            f" Of {images.looked_at:,} looked at {len(images.broken):,} cannot be read: such images are left out "
            '("stop" would refuse them).'
        )
    for remark in data.remarks:
        why += f" {remark[0].upper()}{remark[1:]}."
    return Decision("data", Call(f"data.{data.part}", fields), why)


def _batch_size(train: int, machine: Machine) -> tuple[int, str]:
    """Return the batch size, and why.

    It is a power of two, which 2, 4 or 8 processes share evenly, or a multiple of the number of GPUs that are here.
    """
    most = (128 if train >= 50_000 else 64) if machine.gpus else 32
    least = min(2, train)
    ideal = 2 ** int(math.log2(max(least, train / PART_OF_AN_EPOCH)))
    batch = max(least, min(most, ideal))
    shared = ""
    if machine.gpus > 1:
        batch = max(machine.gpus, batch - batch % machine.gpus)
        shared = f", {batch // machine.gpus} on each of {machine.gpus} GPUs"
    steps = math.ceil(train / batch)
    return batch, f"{plural(train, 'image makes', 'images make')} {plural(steps, 'step')} an epoch{shared}."


def _freeze_plan(data: DataFindings, amount: int, steps: int, machine: Machine) -> Decision:
    probe = _epochs(STEPS_OF_A_PROBE, steps, (3, 20))
    monitored, by = _monitor(data)
    of_each = _of_each(data, amount)
    if amount < FEW:
        epochs = _epochs(2 * STEPS_OF_A_PROBE, steps, (10, 50))
        return Decision(
            "freeze_plan",
            (Call("phases.linear_probe", {"epochs": epochs, **monitored}),),
            f"{of_each}. Too few to change the backbone, so the head alone trains.{by}",
            f"{epochs} epochs for the head alone",
        )
    target, bounds = (STEPS_ON_GPU, EPOCHS_ON_GPU) if machine.gpus else (STEPS_ON_CPU, EPOCHS_ON_CPU)
    epochs = _epochs(target, steps, bounds)
    if amount < SOME:
        scale, how = 0.03, "few images: the head first, then everything, the backbone in very small steps"
    elif amount < MANY:
        scale, how = 0.1, "enough to fine-tune: the head first, then everything, the backbone at a tenth of the rate"
    else:
        probe, scale = min(probe, 3), 0.3
        how = "many images: the head briefly, then everything, the backbone at 0.3 of the rate"
    if data.target_kind == "values" and scale < 0.1:
        scale, how = 0.1, "the head first, then everything; numbers need more of the backbone than classes do"
    return Decision(
        "freeze_plan",
        (
            Call("phases.linear_probe", {"epochs": probe, **monitored}),
            Call("phases.full_finetune", {"epochs": epochs, "backbone_lr_scale": scale, **monitored}),
        ),
        f"{of_each}. {how[0].upper()}{how[1:]}.{'' if machine.gpus else ' Few epochs of that, without a GPU.'}{by}",
        f"{probe} epochs for the head, then {epochs} for everything, the backbone at {scale} of the rate",
    )


def _monitor(data: DataFindings) -> tuple[dict[str, str], str]:
    """Return the field of a phase that names the metric (none for the task's own), and why."""
    if data.target_kind == "labels":
        # Images cannot be ranked by a label that all or none of them have; a small set may have no other labels.
        validated = data.splits.val.targets
        if ((validated == validated[:1]).all(axis=0)).all():
            return {"monitor": "loss"}, " Judged by the loss: no label varies in the validation images."
    if is_imbalanced(data):
        why = " Judged by macro F1, in which rare classes count as much as frequent ones."
        return {"monitor": "macro_f1"}, why
    return {}, ""


def _epochs(steps: int, steps_per_epoch: int, bounds: tuple[int, int]) -> int:
    return max(bounds[0], min(bounds[1], math.ceil(steps / steps_per_epoch)))


def _augment(data: DataFindings, amount: int) -> Decision:
    names, fields = data.splits.names, dict[str, Any]()
    sided = [repr(name) for name in names if _SIDED.search(re.sub(r"[\W_]+", " ", name.lower()))]
    if data.target_kind == "values":
        if sided:
            fields["preset"] = "none"
            why = f"None: crops and mirror images would change {', '.join(sided[:3])}."
            return Decision("augment", Call("transforms.Augment", fields), why)
        fields["min_scale"] = 0.8
        why = "Crops show most of the image, as what is measured must stay in it."
    elif data.target_kind == "labels":
        fields["min_scale"] = 0.6
        why = "Crops show most of the image, so that what a label names is in them."
    elif amount < MANY:
        fields["min_scale"] = 0.5 if amount < SOME else 0.35
        why = f"{'Gentle' if amount < SOME else 'Moderate'} crops for {plural(amount, 'image')} a class."
    else:
        fields["preset"] = "trivial"
        why = f"{amount:,} images a class bear strong variation (TrivialAugment)."
    if sided:
        fields["flip"] = False
        why += f" No mirror images: they would change {', '.join(sided[:3])}."
    elif len(names) >= SIGNS and all(len(name) == 1 and name.isalnum() for name in names):
        fields["flip"] = False
        why += " No mirror images: the classes look like digits or letters."
    else:
        why += " Set flip=False where left and right differ (text, signs)."
    return Decision("augment", Call("transforms.Augment", fields), why)


SIGNS = 10
"""The fewest classes whose names of one letter or digit are taken for letters or digits; fewer may be codes."""

_SIDED = re.compile(
    r"\b(left|right|angle|rotation|degrees?|yaw|roll|steering|heading|clockwise|anticlockwise|arrow|digit|letter"
    r"|[xy]\d?|c[xy]|[xy] ?(min|max)|keypoint)\b"
)
"""Words in the names of classes and targets that a mirror image or a crop would change."""
