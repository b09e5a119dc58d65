"""ONNX files, written by torch.onnx.export and run by ONNX Runtime."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from launcher.errors import UserError, pip_install
from launcher.export.output_check import Runs
from launcher.export.quiet import quiet

SMALLEST_OPSET = 18
"""First opset whose Resize has antialiasing, and the oldest that torch's exporter writes."""


def check_extra() -> None:
    """Raise UserError if a package is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx: needs {', '.join(missing)}: {pip_install('onnx')}")


def write(
    program: ExportedProgram,
    file: Path,
    input_name: str,
    axes: list[str],
    output_name: str,
    opset: int | None,
    metadata: dict[str, str],
) -> int:
    """Write a program as ONNX and return the opset.

    `axes` are the names of the input's free dimensions, from the first one on. Weights beyond 2 GB, which one file
    cannot hold, go into a second file beside it. Raises UserError for operations without a translation to ONNX, and
    OSError if the file cannot be written.
    """
    try:
        with quiet(), torch.no_grad():
            written = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=opset,
                input_names=[input_name],
                output_names=[output_name],
            )
            assert written is not None
            model = written.model
            _name_axes(model, axes)
            model.producer_name = "launcher"
            for part in (model, model.graph, *model.graph):  # these hold the exporter's notes on its work
                part.metadata_props.clear()
            model.metadata_props.update(metadata)
            written.save(str(file))
    except OSError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"--to onnx: this network cannot be written as ONNX: {' '.join(lines[-2:])[:300]}") from error
    return int(model.opset_imports[""])


def _name_axes(model: Any, axes: list[str]) -> None:
    """Replace the exporter's own names of free dimensions, such as s77."""
    import onnx_ir

    (value,) = model.graph.inputs
    names = {str(value.shape[place]): name for place, name in enumerate(axes)}
    outputs = (output for node in model.graph for output in node.outputs)
    for value in [*model.graph.inputs, *model.graph.outputs, *outputs]:
        if value.shape is not None:
            sides = [names.get(str(side), side if isinstance(side, int) else str(side)) for side in value.shape]
            value.shape = onnx_ir.Shape(sides)


def runs(file: Path) -> Runs:
    """Return a function that runs the file by ONNX Runtime on the CPU; raise UserError if it cannot be loaded."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its warnings are about its optimisations
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"--to onnx: ONNX Runtime cannot load what was written: {error}") from error
    name = session.get_inputs()[0].name

    def run(batch: torch.Tensor) -> torch.Tensor:
        try:
            (outputs,) = session.run(None, {name: batch.numpy()})
        except Exception as error:
            shape = tuple(batch.shape)
            raise UserError(f"--to onnx: ONNX Runtime cannot run it on a batch {shape}: {error}") from error
        return torch.from_numpy(outputs)

    return run
