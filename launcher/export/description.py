"""Description in an exported file, with all that its use without this package takes."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch

from launcher.errors import DISTRIBUTION
from launcher.export.graph import output_dtype
from launcher.export.target import GRAPHS, Options, input_name, output_name
from launcher.files import json_text
from launcher.inference.finished_run import FinishedRun
from launcher.inference.loaded_model import LoadedModel
from launcher.text import encodable


def description(finished: FinishedRun, model: LoadedModel, options: Options) -> dict[str, Any]:
    """Return the description as JSON.

    It holds all values, whether the file's graph applies them or not; "applied" says which it applies.
    """
    about = model.preprocessing.about
    side = about.image_size
    graph = options.form in GRAPHS
    applied = {
        "preprocessing": graph and options.preprocess,
        "probabilities": graph and options.probabilities,
        "units": graph and model.mean is not None,
    }
    outputs = output_name(model, options) if graph else "outputs"
    described: dict[str, Any] = {
        "task": model.kind,
        "class_names": list(model.classes),
        "input": {
            "name": input_name(options),
            "dtype": "uint8" if options.preprocess else "float32",
            "shape": ["N", "height", "width", 3] if options.preprocess else ["N", 3, side, side],
            "colour": "RGB",
            "resize_shorter_side_to": about.resize_size,
            "centre_crop_to": side,
            "interpolation": about.interpolation,
            "scale": 1 / 255,
            "mean": list(about.mean),
            "std": list(about.std),
        },
        "output": {
            "name": outputs,
            "dtype": str(output_dtype(model) if graph else torch.float32).removeprefix("torch."),
            "meaning": _meaning(finished, model, applied),
        },
        "applied": applied,
        "precision": "float32",
        "temperature": model.temperature,
        "calibrated": model.calibrated,
        **({"not_calibrated": model.not_calibrated} if model.not_calibrated else {}),
        "network": {
            key: finished.described[key]
            for key in ("library", "name", "kwargs", "classifier_name", "note")
            if finished.described.get(key) is not None
        },
        "num_outputs": int(finished.described["num_outputs"]),
        "metrics": finished.metrics,
        "step": finished.step,
        "run": finished.rundir.path.absolute().name,
        "versions": versions(),
    }
    if model.kind == "multi-label":
        described["thresholds"] = list(model.thresholds)
        described["thresholds_fitted"] = model.thresholds_fitted
        if model.positives:
            described["positives_of_thresholds"] = list(model.positives)
    if model.mean is not None and model.std is not None:
        described["units"] = {"mean": model.mean.tolist(), "std": model.std.tolist()}
    return described


def _meaning(finished: FinishedRun, model: LoadedModel, applied: dict[str, bool]) -> str:
    """Describe the outputs of the file, given what it applies itself."""
    if applied["probabilities"] and model.kind == "classification":
        scaled = f"calibrated: logits divided by temperature {model.temperature:.4g}"
        how = scaled if model.calibrated else "not calibrated"
        return f"probabilities of the classes, which sum to 1 (softmax is applied; {how})"
    if applied["probabilities"]:
        return "the probability of each label (sigmoid is applied; not calibrated)"
    if applied["units"]:
        return "values in the units of the targets"
    meaning = str(finished.described["task"].get("outputs", ""))
    if model.kind == "classification" and model.calibrated:
        return f"logits; softmax of logits / {model.temperature:.4g}, the temperature, gives calibrated probabilities"
    return meaning


def as_strings(described: dict[str, Any]) -> dict[str, str]:
    """Convert a description to text values, for files whose metadata are texts.

    Strings stay as they are, and all other values become JSON. A class may be a folder whose name is not valid text;
    such bytes are escaped.
    """
    texts = {key: value if isinstance(value, str) else json_text(value) for key, value in described.items()}
    return {key: encodable(text) for key, text in texts.items()}


def versions() -> dict[str, str]:
    """Return the versions of this package and of the installed libraries on which an export depends."""
    installed = {}
    for name in (DISTRIBUTION, "torch", "torchvision", "timm", "onnx", "onnxscript"):
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
