"""A program of torch.export in a .pt2 file: runs with torch alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from launcher.errors import UserError
from launcher.files import json_text
from launcher.results.export.checking import Runs
from launcher.results.export.quiet import quiet

EXTRA = "launcher.json"
"""The description's name among the extra files of the program."""


def write(program: ExportedProgram, file: Path, described: dict[str, Any]) -> None:
    """Raises UserError where it cannot be written."""
    text = json_text(described, indent=1).encode("utf-8", "backslashreplace").decode()
    try:
        with quiet():
            torch.export.save(program, file, extra_files={EXTRA: text})
    except RuntimeError as error:  # torch's own writer of files, where the disk is full
        raise UserError(f"--to torch-export: {file.name} cannot be written: {error}") from error


def runs(file: Path) -> Runs:
    """By torch, from the file. Raises UserError where it cannot be run."""
    with quiet():
        module = torch.export.load(file).module()

    def run(batch: torch.Tensor) -> torch.Tensor:
        try:
            with torch.no_grad():
                outputs: torch.Tensor = module(batch)
        except Exception as error:
            shape = tuple(batch.shape)
            raise UserError(f"--to torch-export: torch cannot run it on a batch {shape}: {error}") from error
        return outputs

    return run
