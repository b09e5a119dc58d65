"""What an exported file says of itself: enough to use it without this package."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

from launcher.results.export.wanted import GRAPHS, Wanted, input_name, output_name
from launcher.results.finished import FinishedRun
from launcher.results.loaded import LoadedModel


def description(finished: FinishedRun, model: LoadedModel, wanted: Wanted) -> dict[str, Any]:
    """JSON. Values are in it whether the file's graph applies them or not; "applied" says which it does."""
    about = model.preprocessing.about
    graph = wanted.form in GRAPHS
    applied = {
        "preprocessing": graph and wanted.preprocess,
        "probabilities": graph and wanted.probabilities,
        "units": graph and model.mean is not None,
    }
    outputs = output_name(model, wanted) if graph else "outputs"
    described: dict[str, Any] = {
        "task": model.kind,
        "class_names": list(model.classes),
        "input": {
            "name": input_name(wanted),
            "dtype": "uint8" if wanted.preprocess else "float32",
            "shape": ["N", "height", "width", 3] if wanted.preprocess else ["N", 3, about.image_size, about.image_size],
            "colour": "RGB",
            "resize_shorter_side_to": about.resize_size,
            "centre_crop_to": about.image_size,
            "interpolation": about.interpolation,
            "scale": 1 / 255,
            "mean": list(about.mean),
            "std": list(about.std),
        },
        "output": {"name": outputs, "meaning": str(finished.described["task"].get("outputs", ""))},
        "applied": applied,
        "precision": "float32",
        "temperature": model.temperature,
        "calibrated": model.calibrated,
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
    if model.mean is not None and model.std is not None:
        described["units"] = {"mean": model.mean.tolist(), "std": model.std.tolist()}
    return described


def as_strings(described: dict[str, Any]) -> dict[str, str]:
    """For files whose metadata are texts: strings as they are, all else as JSON. A class may be a folder whose name is
    not valid text; such bytes are escaped."""
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in described.items()
    }
    return {key: text.encode("utf-8", "backslashreplace").decode() for key, text in texts.items()}


def versions() -> dict[str, str]:
    found = {}
    for name in ("launcher", "torch", "torchvision", "timm", "onnx", "onnxscript"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
