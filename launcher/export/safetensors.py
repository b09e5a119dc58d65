"""Weights in one .safetensors file under the plain network's names, with the description in its header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from launcher.errors import UserError
from launcher.export.output_check import Runs
from launcher.export.plain_network import Plain
from launcher.files import save_tensors
from launcher.inference.finished_run import FinishedRun, build_network, load_plain
from launcher.inference.loaded_model import LoadedModel


def write(finished: FinishedRun, file: Path, metadata: dict[str, str]) -> None:
    """Write the very tensors of `final/model.safetensors`.

    Raises UserError if they cannot be written, and OSError if the disk refuses them.
    """
    try:
        save_tensors(load_file(finished.weights), file, {"format": "pt", **metadata})
    except SafetensorError as error:
        raise UserError(f"{file.name}: cannot be written: {error}") from error


def runs(finished: FinishedRun, model: LoadedModel, plain: Plain | None, file: Path) -> Runs:
    """Return a function that runs the file's weights.

    They are loaded into the plain network, or into the run's own parts if no library builds it. Raises UserError if
    they do not fit.
    """
    if plain is None:
        network: nn.Module = build_network(finished, int(finished.described["num_outputs"]))
        load_plain(network, file)  # type: ignore[arg-type]
    else:
        try:
            network = plain.build(load_file(file))
        except RuntimeError as error:
            raise UserError(f"{file.name}: does not load into the plain {plain.name}: {error}") from error
    return in_units(network, model)


def in_units(network: Callable[[torch.Tensor], torch.Tensor], model: LoadedModel) -> Runs:
    """Return a function that runs a network and converts a regression's outputs to the units of the targets.

    Weights alone give normalised values, but they are compared with values in these units.
    """

    @torch.no_grad()
    def run(batch: torch.Tensor) -> torch.Tensor:
        outputs = network(batch)
        return model.interpret(outputs) if model.mean is not None else outputs

    return run
