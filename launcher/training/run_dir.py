"""The folder of a run: its recipe, data and environment, its other files, and the row-by-row record of its metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open

from launcher.errors import DISTRIBUTION, UserError
from launcher.files import json_text, read_json, refuse_endless, remove_drafts, write_atomic, write_json
from launcher.recipe.abilities import IsPreparedCopy
from launcher.recipe.own_code import Code, changed_code, own_code
from launcher.recipe.protocols import Split, Splits
from launcher.recipe.recipe import Recipe
from launcher.recipe.serialization import to_json
from launcher.text import one_line
from launcher.training.checkpoint import Checkpoints
from launcher.training.command import Command
from launcher.training.continuation import Differences, differences_from, same_images
from launcher.training.data_identity import FILE as DATA_FILE
from launcher.training.data_identity import DataIdentity, changes, identify
from launcher.training.feature_cache.directory import cache_folder
from launcher.training.feature_cache.identity import versions_of
from launcher.training.launch import usable_cpus

FILES = (
    "recipe.json",
    "recipe.py",
    "environment.json",
    "data.npz",
    "skipped.txt",
    "plan.json",
    "precision.json",
    "cache.json",
    "metrics.jsonl",
    "timing.jsonl",
    "proofs.jsonl",
    "log.txt",
    "evaluation.json",
    "evaluation.parquet",
    "report.html",
    "STOPPED.json",
    "LIVES.jsonl",
    "trackers.json",
)
"""The files that a run keeps besides `checkpoints/` and `final/`."""
FINAL_FILES = ("model.safetensors", "model.json", "classes.json", "preprocess.json", "metrics.json", "calibration.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """The recipe, command and data of a start of a run."""

    recipe: Recipe
    recipe_source: str
    """The text of the recipe's file."""
    command: Command
    splits: Splits
    lr_scales_of_phases: tuple[Mapping[str, float], ...]
    """The lr_scales of each phase by parameter name."""
    accepts_changed_code: bool = False


class RunDir:
    """The run dir and its files; the main process writes them, the others only read."""

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
        """Return whether the run has written `final/`."""
        return (self.final / "metrics.json").is_file()

    def damage_of_final(self) -> str | None:
        """Return a description of the damage to the files of `final/`, or None; weights are only opened, not read."""
        try:
            metrics, model = read_json(self.final / "metrics.json"), read_json(self.final / "model.json")
            classes, preprocess = read_json(self.final / "classes.json"), read_json(self.final / "preprocess.json")
            valid = {
                "metrics.json": isinstance(metrics, dict)
                and all(value is None or isinstance(value, int | float) for value in metrics.values()),
                "model.json": isinstance(model, dict) and isinstance(model.get("step"), int),
                "classes.json": isinstance(classes, list) and all(isinstance(name, str) for name in classes),
                "preprocess.json": isinstance(preprocess, dict) and "image_size" in preprocess,
            }
            for name, is_valid in valid.items():
                if not is_valid:
                    return f"{self.final / name}: holds something else"
            with safe_open(self.final / "model.safetensors", "pt"):
                return None
        except UserError as error:
            return str(error)
        except (OSError, SafetensorError) as error:
            return f"{self.final / 'model.safetensors'}: cannot be read ({error})"

    def check(self, recipe: Recipe, resume: Literal["auto", "must", "never"]) -> None:
        """Raise UserError if this run dir is not writable, belongs to another recipe, or contradicts `resume`."""
        if self.path.is_file():
            raise UserError(f"--run-dir {self.path}: is a file; give a folder, or a name that is free")
        try:
            str(self.path.absolute()).encode()
        except UnicodeEncodeError:
            raise UserError(
                f"--run-dir {one_line(str(self.path))}: is no text in UTF-8, and weights can only be written to paths "
                "that are; give another name"
            ) from None
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()  # a file without a name, so that a kill leaves nothing behind
            for folder in new:  # removed again, so that a recipe that turns out to be wrong leaves nothing behind
                folder.rmdir()
        except OSError as error:
            raise UserError(
                f"--run-dir {self.path}: cannot write there ({error.strerror}); choose a folder that is writable"
            ) from error
        self._check_files()
        begun = self.recipe_json.is_file()
        if resume == "never" and begun:
            raise UserError(
                f"--resume never: {self.path} already holds a run; give another --run-dir, or --resume auto to "
                "continue it"
            )
        if resume == "must" and not any((self.path / "checkpoints").glob("step-*")):
            raise UserError(f"--resume must: {self.path} holds no checkpoint to continue from")
        self._refuse_another(self.differences(recipe))

    def _check_files(self) -> None:
        """Raise UserError if a folder or a link is in the place of a file, or a file in the place of a folder.

        Later it would be noticed only in the middle of a run, or be overwritten; and a link may lead to any file of the
        user.
        """
        refuse_endless(self.path)
        problems = []
        for name in (*FILES, *(f"final/{name}" for name in FINAL_FILES), "LOCK"):
            path = self.path / name
            if path.is_dir():
                problems.append(f"{path}: is a folder, where the run keeps a file; remove it")
            elif path.is_symlink():
                problems.append(f"{path}: is a link, where the run keeps a file; remove it")
        for name in ("checkpoints", "final"):
            path = self.path / name
            if (path.exists() or path.is_symlink()) and not path.is_dir():
                problems.append(f"{path}: is no folder, where the run keeps one; remove it")
        if self.final.is_dir() and self.final.is_symlink():
            problems.append(f"{self.final}: is a link, where the run keeps a folder; remove it")
        if problems:
            raise UserError(*problems)

    def differences(self, recipe: Recipe) -> Differences:
        """Return the differences between a recipe and that of the run, if one has begun.

        JSON is compared with JSON, so that nothing that a run dir names is imported. Raise UserError if the run's
        recipe cannot be read.
        """
        if not self.recipe_json.is_file():
            if self._has_trained() and (self._environment() or {}).get("recipe") != digest_of(recipe):
                raise UserError(
                    f"{self.recipe_json}: missing, so that it cannot be told whether the run is of this recipe; bring "
                    "it back, or give another --run-dir"
                )
            return Differences()
        try:
            there = read_json(self.recipe_json)
        except UserError as error:
            raise UserError(f"{error}; give another --run-dir, or bring the file back") from error
        if not isinstance(there, dict):
            raise UserError(f"{self.recipe_json}: holds no recipe; give another --run-dir, or bring the file back")
        return differences_from(there, recipe)

    def _refuse_another(self, differences: Differences, cache: tuple[str, ...] = ()) -> None:
        refused = [*differences.refused, *cache]
        if self.finished:  # its weights were chosen
            refused += [line for line in differences.accepted if line.startswith("final_weights:")]
        if refused:
            raise UserError(
                f"--run-dir {self.path}: holds a run of another recipe ({'; '.join(refused[:6])}"
                f"{'; ...' if len(refused) > 6 else ''}); give another --run-dir, or undo the change"
            )

    def begin(self, start: Start, report: Callable[[str], None]) -> list[str]:
        """Write the files that record the run, as far as they are missing, environment.json last.

        The caller must hold the run's lock. Return one line for each accepted difference from the run as it began.
        Raise UserError if the run dir belongs to another recipe, if the data or the code of the user's own parts are
        not those that the run began with (unless the start accepts changed code), or if a file cannot be written.
        """
        self.clear_away()
        recipe = start.recipe
        differences = self.differences(recipe)  # again, because another start may have begun the run since `check`
        same = not differences.cache or same_images(read_json(self.recipe_json), recipe, start.lr_scales_of_phases)
        self._refuse_another(differences, () if same else differences.cache)
        has_environment = self.environment_json.is_file() and (self._has_trained() or self._environment() is not None)
        identity = identify(start.splits, cache_folder() / "digests", usable_cpus(), report)
        if has_environment:
            self._check_data(start.splits, identity, differences.data)
        code = own_code(recipe)
        changed = changed_code((self._environment() or {}).get("code", code), code)
        if changed and not start.accepts_changed_code:
            raise UserError(
                f"--run-dir {self.path}: code of the recipe's own parts is not what the run began with "
                f"({'; '.join(changed)}); undo the change, give another --run-dir, or continue with it: --accept-code"
            )
        lines = [f"{line}: it changes no weights" for line in (*differences.accepted, *differences.cache)]
        lines += [f"{line}: the data are the same" for line in differences.data]
        lines += [f"continuing with code that has changed since the run began: {line}" for line in changed]
        try:
            self._write_what_lacks(start, identity, code, anew=bool(lines))
        except OSError as error:
            if not self.path.is_dir():
                raise  # it was removed meanwhile, which is reported as such elsewhere
            raise UserError(
                f"--run-dir {self.path}: cannot be written ({error.strerror or error}); make room, and give the same "
                "command again"
            ) from error
        return lines

    def _write_what_lacks(self, start: Start, identity: DataIdentity, code: Code, *, anew: bool) -> None:
        recipe, skipped = start.recipe, start.splits.skipped
        if anew or not self.recipe_json.is_file():
            write_json(self.recipe_json, to_json(recipe))
        if anew or not (self.path / "recipe.py").is_file():
            write_atomic(self.path / "recipe.py", start.recipe_source)
        if skipped and not (self.path / "skipped.txt").is_file():
            write_atomic(self.path / "skipped.txt", "\n".join(skipped) + "\n")
        if not (self.path / DATA_FILE).is_file():
            identity.save(self.path)
        if anew or self._environment() is None:
            facts = {"data": data_summary(start.splits), "command": start.command.words, "folder": str(Path.cwd())}
            facts |= {"starter": start.command.starter, "code": code, "recipe": digest_of(recipe)}
            write_json(self.environment_json, {**facts, **environment()})

    def _check_data(self, splits: Splits, identity: DataIdentity, renamed: Sequence[str]) -> None:
        changed = self._changes(splits, identity)
        if renamed and not (self.path / DATA_FILE).is_file():  # an earlier version's run: only names can be compared
            changed = [*renamed, *changed]
        if changed:
            raise UserError(
                f"--run-dir {self.path}: the data are not those that the run began with ({'; '.join(changed)}); "
                "bring them back, or give another --run-dir"
            )

    def clear_away(self) -> None:
        """Remove drafts left by starts that were killed."""
        for folder in (self.path, self.final):
            remove_drafts(folder)
        self.checkpoints.remove_drafts()
        for folder in self.path.glob(".writing-*final"):
            shutil.rmtree(folder, ignore_errors=True)

    def _environment(self) -> dict[str, Any] | None:
        """Return the content of environment.json, or None if it is missing or damaged."""
        try:
            content = read_json(self.environment_json)
        except UserError:
            return None
        return content if isinstance(content, dict) and isinstance(content.get("data"), dict) else None

    def lacks(self) -> list[str]:
        """Return the names of missing or damaged files that identify the run, and that `begin` writes or asks for."""
        missing = [] if self.recipe_json.is_file() else [self.recipe_json.name]
        return missing + ([] if self._environment() else [self.environment_json.name])

    def _has_trained(self) -> bool:
        return self.finished or any((self.path / "checkpoints").glob("step-*"))

    def add_timing(self, row: Mapping[str, Any]) -> None:
        """Append a row to timing.jsonl, which records durations.

        Durations differ from start to start; metrics.jsonl holds none, so that it does not differ.
        """
        self._append("timing.jsonl", row)

    def add_proof(self, row: Mapping[str, Any]) -> None:
        """Append a row to proofs.jsonl: the proof for the frozen tensors at a phase's beginning or at a checkpoint."""
        self._append("proofs.jsonl", row)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json_text(row) + "\n")

    def changes_of_data(self, splits: Splits) -> list[str]:
        """Return one line for each difference between the data and those that the run began with.

        Raise UserError if they cannot be compared.
        """
        return self._changes(splits, identify(splits, cache_folder() / "digests", usable_cpus(), lambda line: None))

    def _changes(self, splits: Splits, identity: DataIdentity) -> list[str]:
        if (self.path / DATA_FILE).is_file():
            return changes(DataIdentity.load(self.path), identity)
        there = self._environment()
        if there is None:
            raise UserError(
                f"{self.environment_json}: cannot be read, so that it cannot be told whether the data are those of the "
                "run; bring it back, or remove it where you know that they are"
            )
        before, data = there["data"], data_summary(splits)
        return [
            f"{key}: {before.get(key)} then, {data.get(key)} now"
            for key in {**before, **data}
            if before.get(key) != data.get(key)
        ]


def digest_of(recipe: Recipe) -> str:
    """Return a digest of a recipe's JSON."""
    text = json_text(to_json(recipe))
    return hashlib.blake2b(text.encode("utf-8", "backslashreplace"), digest_size=16).hexdigest()


def data_summary(splits: Splits) -> dict[str, Any]:
    """Return a summary of the data, without reading an image.

    It holds the names of the classes, labels or targets, the numbers of samples, hashes of the names and targets of the
    samples, and the id of the prepared copy that the pixels are taken from, if any.
    """
    images = splits.train.images
    copy_id = images.copy_id if isinstance(images, IsPreparedCopy) else None
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
        # A data set may be moved as a whole, so only the last two components of a path identify a sample.
        digest.update("/".join(Path(split.images.name(index)).parts[-2:]).encode("utf-8", "surrogateescape") + b"\0")
    return digest.hexdigest()


def environment() -> dict[str, Any]:
    """Return the platform and the versions of Python and of the packages that matter."""
    packages = versions_of(DISTRIBUTION, "torch", "torchvision", "accelerate", "timm", "datasets", "numpy", "pillow")
    return {"python": sys.version.split()[0], "platform": platform.platform(), "packages": packages}
