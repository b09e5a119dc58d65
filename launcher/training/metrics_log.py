"""metrics.jsonl: a row for each optimizer step and for each epoch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.errors import UserError
from launcher.files import json_text
from launcher.text import plural


class MetricsLog:
    """The file metrics.jsonl with one JSON object per row.

    It holds no times, so that a resumed run writes the very same rows.
    """

    def __init__(self, path: Path, rows: int) -> None:
        """Open the file to append after the first `rows` rows; rows written after the last checkpoint are cut off."""
        self.rows = rows
        kept = path.read_bytes().splitlines(keepends=True)[:rows] if path.exists() else []
        if len(kept) < rows:
            raise UserError(
                f"{path}: has {plural(len(kept), 'row', spec='')}, "
                f"the checkpoint was saved after {rows}; bring the file back"
            )
        for number, row in enumerate(kept):
            if not _is_row(row):
                raise UserError(f"{path}: row {number + 1} is damaged; bring the file back")
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(sum(map(len, kept)))
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a row."""
        # A class may be a folder whose name is not valid text; escaped, it is still valid JSON.
        self._file.write(json_text(row).encode("utf-8", "backslashreplace") + b"\n")
        self.rows += 1

    def sync(self) -> None:
        """Flush the rows so far to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _is_row(line: bytes) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "event" in row and "step" in row
