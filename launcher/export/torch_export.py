"""A program of torch.export in a .pt2 file: runs with torch alone."""

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

EXTRA = "launcher.json"
"""The description's name among the extra files of the program."""


def write(program: ExportedProgram, file: Path, described: dict[str, Any]) -> None:
    """Write the program with its description. Raises OSError where it cannot be written.

    It is made in memory: given a path, torch's own writer ends the process (SIGABRT) where the disk is full.
    """
    text = json_text(described, indent=1).encode("utf-8", "backslashreplace").decode()
    content = io.BytesIO()
    with quiet():
        torch.export.save(program, content, extra_files={EXTRA: text})
    file.write_bytes(content.getbuffer())


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
