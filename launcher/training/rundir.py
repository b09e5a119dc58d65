"""The folder of one run: whose it is, what is in it, and the row-by-row record of its metrics."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from launcher.errors import UserError
from launcher.files import json_text, read_json, write_atomic, write_json
from launcher.recipe.protocols import Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import differences, to_json
from launcher.training.checkpoint import Checkpoints


class RunDir:
    """Paths of a run. The main process writes, the others only read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_json = path / "recipe.json"
        self.environment_json = path / "environment.json"
        self.metrics_jsonl = path / "metrics.jsonl"
        self.log_txt = path / "log.txt"
        self.final = path / "final"
        self.checkpoints = Checkpoints(path / "checkpoints")

    @property
    def finished(self) -> bool:
        return (self.final / "metrics.json").is_file()

    def check(self, recipe: Recipe, resume: Literal["auto", "must", "never"]) -> None:
        """Raises UserError where this run dir cannot be used: not writable, another recipe's, or against `resume`."""
        if self.path.is_file():
            raise UserError(f"--run-dir {self.path}: is a file; give a folder, or a name that is free")
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
            for folder in new:  # A recipe that turns out to be wrong leaves nothing behind.
                folder.rmdir()
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path}: cannot write there ({error.strerror}); choose a folder that is writable"
            ) from error
        begun = self.recipe_json.is_file()
        if resume == "never" and begun:
            raise UserError(
                f"--resume never: {self.path} already holds a run; give another --run-dir, or --resume auto to "
                "continue it"
            )
        if resume == "must" and not any((self.path / "checkpoints").glob("step-*")):
            raise UserError(f"--resume must: {self.path} holds no checkpoint to continue from")
        if begun:
            self._check_same(recipe)

    def _check_same(self, recipe: Recipe) -> None:
        """Compare JSON with JSON: what a run dir names is not imported."""
        try:
            there = read_json(self.recipe_json)
        except UserError as error:
            raise UserError(f"{error}; give another --run-dir, or bring the file back") from error
        if not isinstance(there, dict):
            raise UserError(f"{self.recipe_json}: holds no recipe; give another --run-dir, or bring the file back")
        if found := differences(there, recipe):
            raise UserError(
                f"--run-dir {self.path}: holds a run of another recipe ({'; '.join(found[:6])}"
                f"{'; ...' if len(found) > 6 else ''}); give another --run-dir, or undo the change"
            )

    def begin(self, recipe: Recipe, recipe_source: str, command: tuple[str, ...], splits: Splits) -> None:
        """Write down what runs. Raises UserError where the data are not those that the run began with."""
        if self.environment_json.is_file():
            if changed := self.changes_of_data(splits):
                raise UserError(
                    f"--run-dir {self.path}: the data are not those that the run began with ({'; '.join(changed)}); "
                    "bring them back, or give another --run-dir"
                )
            return
        as_json = to_json(recipe)
        self.path.mkdir(parents=True, exist_ok=True)
        if splits.skipped:
            write_atomic(self.path / "skipped.txt", "\n".join(splits.skipped) + "\n")
        told = {"data": data_identity(splits), "command": command, "folder": str(Path.cwd()), **environment()}
        write_json(self.environment_json, told)
        write_atomic(self.path / "recipe.py", recipe_source)
        write_json(self.recipe_json, as_json)

    def add_timing(self, row: Mapping[str, Any]) -> None:
        """Append to timing.jsonl, which tells how long things took. Times differ from start to start; metrics.jsonl,
        which holds none, does not."""
        self._append("timing.jsonl", row)

    def add_proof(self, row: Mapping[str, Any]) -> None:
        """Append to proofs.jsonl: what was hashed of the frozen weights, when a phase began and at each checkpoint."""
        self._append("proofs.jsonl", row)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json_text(row) + "\n")

    def changes_of_data(self, splits: Splits) -> list[str]:
        """What of the data is not as it was when the run began; empty where all is."""
        before, data = json.loads(self.environment_json.read_text())["data"], data_identity(splits)
        return [
            f"{key}: {before.get(key)} then, {data.get(key)} now"
            for key in {**before, **data}
            if before.get(key) != data.get(key)
        ]


class MetricsLog:
    """metrics.jsonl: one JSON object a row. Holds no times, so that a resumed run writes the very same rows."""

    def __init__(self, path: Path, rows: int) -> None:
        """Open for appending after the first `rows` rows; later ones (written after the last checkpoint) are cut."""
        self.rows = rows
        kept = path.read_bytes().splitlines(keepends=True)[:rows] if path.exists() else []
        if len(kept) < rows:
            raise UserError(f"{path}: has {len(kept)} rows, the checkpoint was saved after {rows}; bring the file back")
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.truncate(sum(map(len, kept)))
        self._file.seek(0, os.SEEK_END)

    def write(self, row: Mapping[str, Any]) -> None:
        # A class may be a folder whose name is not valid text; escaped, it still is JSON.
        self._file.write(json_text(row).encode("utf-8", "backslashreplace") + b"\n")
        self.rows += 1

    def sync(self) -> None:
        """The rows so far are on the disk when this returns."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def data_identity(splits: Splits) -> dict[str, Any]:
    """What makes data the same data: names and targets of every sample, in order, the classes, and the prepared copy
    that the pixels are taken from, if they are."""
    copy_id = getattr(splits.train.images, "copy_id", None)
    return ({"prepared_copy": copy_id} if copy_id else {}) | {
        "names": list(splits.names),
        "train_samples": len(splits.train),
        "val_samples": len(splits.val),
        "train_hash": _split_hash(splits.train),
        "val_hash": _split_hash(splits.val),
    }


def _split_hash(split: Split) -> str:
    digest = hashlib.blake2b(np.ascontiguousarray(split.targets).tobytes(), digest_size=16)
    for index in range(len(split)):
        # A data set may be moved as a whole: the last two parts of a path tell its samples apart.
        digest.update("/".join(Path(split.images.name(index)).parts[-2:]).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    packages = {}
    for name in ("torch", "torchvision", "accelerate", "timm", "datasets", "numpy", "pillow"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"python": sys.version.split()[0], "platform": platform.platform(), "packages": packages}
