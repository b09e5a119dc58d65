"""Checkpoints that are never left half-written.

Each is written to a draft folder, synced and renamed; the manifest with sizes and hashes is written last.

checkpoints/base/          the network before training, once per run
checkpoints/step-000600/   model.safetensors (the tensors that may have changed since), ema.safetensors,
                           outputs.safetensors (on the validation images), optimizer.pt, progress.json, MANIFEST.json
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import pickle
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from launcher.errors import UserError
from launcher.files import read_json, replaced_folder, save_tensors
from launcher.text import plural
from launcher.training.best import Best

MANIFEST = "MANIFEST.json"


@dataclasses.dataclass
class Progress:
    """The position of a run; together with the weights and the optimizer's state it is all that a restart needs."""

    phase: int = 0
    epoch: int = 0
    """Number of finished epochs of the phase."""
    step_in_epoch: int = 0
    step: int = 0
    """Number of optimizer steps over the whole run."""
    phase_ended: bool = False
    """True if the phase is over (after all its epochs, or early) and the next one has not begun."""
    loss_sum: float = 0.0
    """Sum of the training losses of the current epoch's steps, each multiplied by its number of samples."""
    loss_samples: int = 0

    metrics_rows: int = 0
    """Number of rows of metrics.jsonl written before this checkpoint."""
    phase_best: Best | None = None
    run_best: Best | None = None
    head_step: int | None = None
    """Step at the end of the last phase that trained the head alone; its weights are kept, as they are small."""
    epochs_without_better: int = 0
    skipped_steps: int = 0
    """Number of steps without an update because their gradient was not finite (on_nonfinite="skip")."""
    seconds: float = 0.0
    """Seconds spent training so far."""

    @property
    def train_loss(self) -> float:
        """Return the mean training loss over the current epoch's samples, or NaN if all its steps were skipped."""
        return self.loss_sum / self.loss_samples if self.loss_samples else math.nan

    def to_json(self) -> dict[str, Any]:
        """Return the content of progress.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Progress:
        """Return the progress from the content of progress.json."""
        best = {key: Best(**data[key]) for key in ("phase_best", "run_best") if data[key] is not None}
        return cls(**(data | best))


@dataclasses.dataclass(frozen=True)
class State:
    """A checkpoint in memory, with all tensors on the CPU."""

    progress: Progress
    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    """{"state": the state by parameter name, "scaler": the gradient scaler's state or None}"""
    ema: dict[str, torch.Tensor] | None
    outputs: torch.Tensor | None = None
    """float32 (samples, num_outputs): the outputs of these weights on the validation images, if the run may end with
    them. They are stored because a second evaluation need not agree to the last bit."""


class Checkpoints:
    """The checkpoints of one run dir."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused: list[str] = []
        """Checkpoints that cannot be continued from, each with the reason."""

    def save_base(self, model: Mapping[str, torch.Tensor]) -> None:
        """Write the state of the network before training."""
        self._write(self.folder / "base", {"model.safetensors": dict(model)})

    def load_base(self) -> dict[str, torch.Tensor]:
        """Return the state of the network before training. Raise UserError if it is missing or damaged."""
        _check(self.folder / "base")
        return load_file(self.folder / "base" / "model.safetensors")

    def has_base(self) -> bool:
        """Return whether the base is complete and undamaged."""
        return _damage(self.folder / "base") is None

    def save(self, state: State) -> Path:
        """Write a checkpoint named after its step, then remove those that are no longer needed.

        The newest checkpoint, the best ones and that of `head_step` are kept. `state.model` and `state.ema` are
        emptied while they are written.
        """
        contents: dict[str, Any] = {"model.safetensors": state.model}
        if state.ema is not None:
            contents["ema.safetensors"] = state.ema
        if state.outputs is not None:
            contents["outputs.safetensors"] = {"outputs": state.outputs}
        contents["optimizer.pt"] = state.optimizer
        contents["progress.json"] = state.progress.to_json()
        step = state.progress.step
        # The same step may be saved twice: before its evaluation and after it. The older checkpoint stays until the
        # newer one is complete.
        taken = [_order(folder)[1] for folder in self._of_step(step)]
        folder = self.folder / (f"step-{step:06d}" + (f"-{max(taken) + 1}" if taken else ""))
        self._write(folder, contents)
        keep = {best.step for best in (state.progress.phase_best, state.progress.run_best) if best}
        keep |= set() if state.progress.head_step is None else {state.progress.head_step}
        self._prune({folder, *(self.of_step(best) for best in keep if best != step)})
        return folder

    def of_step(self, step: int) -> Path:
        """Return the folder of a step's checkpoint; if there are several, the one written last."""
        return max(self._of_step(step), key=_order, default=self.folder / f"step-{step:06d}")

    def newest(self, needed: Callable[[Progress], Mapping[str, int]] = lambda progress: {}) -> Path | None:
        """Return the newest complete checkpoint whose run also has all other checkpoints that it still needs, or None.

        `needed` maps descriptions of these others to their steps. Checkpoints that cannot be continued from are passed
        over and listed in `refused`.
        """
        for folder in sorted(self._all(), key=_order, reverse=True):
            damage = _damage(folder) or self._lacks(folder, needed)
            if damage is None:
                return folder
            self.refused.append(f"{folder}: {damage}")
        return None

    def _lacks(self, folder: Path, needed: Callable[[Progress], Mapping[str, int]]) -> str | None:
        try:
            progress = self.progress_of(folder)
        except UserError as error:
            return str(error)
        for what, step in needed(progress).items():
            if step != progress.step and (damage := _damage(self.of_step(step))):
                return f"needs {self.of_step(step).name}, {what}: {damage}"
        return None

    def _all(self) -> list[Path]:
        return [folder for folder in self.folder.glob("step-*") if _order(folder)[0] >= 0]

    def _of_step(self, step: int) -> list[Path]:
        # A glob pattern would not do: step-100000* also matches step-1000000.
        return [folder for folder in self._all() if _order(folder)[0] == step]

    def load(self, folder: Path, *, only_model: bool = False) -> State:
        """Return a checkpoint's state, with the complete model (the base updated by what has changed).

        Raise UserError if the base or the checkpoint is damaged.
        """
        for part in (self.folder / "base", folder):
            _check(part)
        try:
            model = load_file(self.folder / "base" / "model.safetensors") | load_file(folder / "model.safetensors")
            ema = load_file(folder / "ema.safetensors") if (folder / "ema.safetensors").exists() else None
            optimizer = {} if only_model else torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        except (OSError, SafetensorError, RuntimeError) as error:
            raise _unreadable(folder, error) from error
        except pickle.UnpicklingError as error:  # torch's own message fills a screen
            raise _unreadable(folder, "optimizer.pt holds more than tensors and plain values") from error
        except (EOFError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise _unreadable(folder, "optimizer.pt is not what torch.save writes") from error
        return State(progress=self.progress_of(folder), model=model, optimizer=optimizer, ema=ema)

    def load_outputs(self, folder: Path) -> torch.Tensor | None:
        """Return the validation outputs stored in a checkpoint, or None if it has none or is damaged."""
        file = folder / "outputs.safetensors"
        if _damage(folder) is not None or not file.exists():
            return None
        return load_file(file).get("outputs")

    def progress_of(self, folder: Path) -> Progress:
        """Return the position of the run at the time of a checkpoint. Raise UserError if it cannot be read."""
        try:
            return Progress.from_json(read_json(folder / "progress.json"))
        except (AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{folder}/progress.json: does not tell where a run stands ({error!r})") from error

    def remove_drafts(self) -> None:
        """Remove drafts left by a run that was killed; only the run itself may call this."""
        for folder in self.folder.glob(".writing-*"):
            shutil.rmtree(folder)

    def _write(self, target: Path, contents: Mapping[str, Any]) -> None:
        with replaced_folder(target) as draft:
            _fill(draft, contents)

    def _prune(self, keep: Collection[Path]) -> None:
        for folder in self._all():
            if folder not in keep:
                shutil.rmtree(folder)
        self.remove_drafts()


def _unreadable(folder: Path, why: object) -> UserError:
    return UserError(f"{folder}: cannot be read, though its hashes are right ({why}); remove it")


def _order(folder: Path) -> tuple[int, int]:
    """Return the step of a folder's name and how often it was saved before, or (-1, 0) if it is not a checkpoint.

    "step-000600-1" gives (600, 1).
    """
    match = re.fullmatch(r"step-(\d{6,})(?:-(\d+))?", folder.name, re.ASCII)
    return (int(match[1]), int(match[2] or 0)) if match else (-1, 0)


def _fill(folder: Path, contents: Mapping[str, Any]) -> None:
    """Write files and a manifest of them."""
    manifest = {}
    for name, content in contents.items():
        path = folder / name
        try:
            if name.endswith(".safetensors"):
                # Tensor by tensor, so that not all tensors with channels last are in memory twice.
                save_tensors({key: content.pop(key).contiguous() for key in list(content)}, path)
            elif name.endswith(".json"):
                path.write_text(json.dumps(content, indent=1))
            else:
                torch.save(content, path)
        except (SafetensorError, RuntimeError) as error:  # torch raises RuntimeError for a full disk
            raise OSError(f"{path.name}: {error}") from error
        manifest[name] = {"bytes": path.stat().st_size, "blake2b": _hash(path)}
    (folder / MANIFEST).write_text(json.dumps({"files": manifest}, indent=1))


def _hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check(folder: Path) -> None:
    if (damage := _damage(folder)) is not None:
        raise UserError(f"{folder}: {damage}")


def _damage(folder: Path) -> str | None:
    """Return a description of the damage to a written folder, or None if it is sound."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return f"incomplete (no {MANIFEST})"
    try:
        files = json.loads(manifest.read_text())["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {plural(path.stat().st_size, 'byte', spec='')}, not {expected['bytes']}"
            if _hash(path) != expected["blake2b"]:
                return f"{name} is not what was written (its hash differs)"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"unreadable manifest ({type(error).__name__}: {error})"
    return None
