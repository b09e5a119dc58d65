"""Program of torch.export in a .pt2 file, which runs with torch alone."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from launcher.errors import UserError
from launcher.export.output_check import Runs
from launcher.export.quiet import quiet
from launcher.files import json_text
from launcher.text import encodable

EXTRA = "launcher.json"
"""Name of the description among the extra files of the program."""


def write(program: ExportedProgram, file: Path, described: dict[str, Any]) -> None:
    """Write the program with its description; raise OSError if it cannot be written.

    The file is made in memory first: if torch's own writer gets a path and the disk is full, it ends the process
    (SIGABRT).
    """
    text = encodable(json_text(described, indent=1))
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={EXTRA: text})
    file.write_bytes(content.getbuffer())


def runs(file: Path) -> Runs:
    """Return a function that runs the file by torch, and raises UserError if that fails."""
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
