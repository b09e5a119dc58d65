"""The command `export`: write a file, run it, compare it with the model, and only then give it its name."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from torch import nn

from launcher.errors import UserError
from launcher.export import hub_folder, onnx, safetensors, torch_export
from launcher.export.description import as_strings, description
from launcher.export.graph import Exported, Pixels, capture
from launcher.export.output_check import Difference, Runs, compare
from launcher.export.plain_network import plain_of
from launcher.export.sample_images import SampleImages
from launcher.export.target import Options, input_name, output_name
from launcher.files import draft_folder
from launcher.inference.finished_run import FinishedRun
from launcher.inference.loaded_model import LoadedModel


@dataclasses.dataclass(frozen=True)
class Export:
    """An export that was written, with the result of its comparison."""

    path: Path
    files: list[Path]
    """All files of the export, which may be more than `path` itself."""
    size: int
    """Size of all files in bytes."""
    opset: int | None
    ran_by: str
    difference: Difference


def export(
    finished: FinishedRun,
    model: LoadedModel,
    options: Options,
    images: SampleImages,
    report: Callable[[str], None] = lambda _: None,
) -> Export:
    """Write an export of a model, and compare its outputs with those of the model.

    Raises UserError if the network cannot be written in this form, or if the export does not behave like the model;
    then no new file is left, and existing ones stay.
    """
    with _draft(options.out) as folder:
        draft = folder / options.out.name
        report(f"writing {options.form}")
        if options.form == "onnx":
            opset, run, pixels = _onnx(finished, model, options, draft)
            ran_by = f"ONNX Runtime {metadata.version('onnxruntime')}"
        elif options.form == "torch-export":
            opset, (run, pixels) = None, _program(finished, model, options, draft)
            ran_by = f"torch {metadata.version('torch')} from the file"
        else:
            opset, pixels = None, None
            run, ran_by = _weights(finished, model, options, draft)
        report(f"comparing on {images.what}")
        difference = compare(run, model, options, images, pixels)
        shutil.rmtree(folder / "pixels", ignore_errors=True)
        files = _move(folder, options.out)
    size = sum(file.stat().st_size for file in files)
    return Export(options.out, files, size, opset, ran_by, difference)


def _onnx(finished: FinishedRun, model: LoadedModel, options: Options, draft: Path) -> tuple[int, Runs, Runs | None]:
    about = model.preprocessing.about
    name, axes = input_name(options), ["N", "height", "width"] if options.preprocess else ["N"]
    texts = as_strings(description(finished, model, options))

    def write(module: nn.Module, file: Path, output: str, metadata: dict[str, str]) -> int:
        program = capture(module, options, about)
        return onnx.write(program, file, name, axes, output, options.opset, metadata)

    opset = write(Exported(model, options), draft, output_name(model, options), texts)
    pixels = None
    if options.preprocess:
        alone = _beside(draft)
        write(Pixels(about), alone, "pixels", {})
        pixels = onnx.runs(alone)
    return opset, onnx.runs(draft), pixels


def _program(finished: FinishedRun, model: LoadedModel, options: Options, draft: Path) -> tuple[Runs, Runs | None]:
    about = model.preprocessing.about
    torch_export.write(capture(Exported(model, options), options, about), draft, description(finished, model, options))
    pixels = None
    if options.preprocess:
        alone = _beside(draft)
        torch_export.write(capture(Pixels(about), options, about), alone, {})
        pixels = torch_export.runs(alone)
    return torch_export.runs(draft), pixels


def _weights(finished: FinishedRun, model: LoadedModel, options: Options, draft: Path) -> tuple[Runs, str]:
    plain, described = plain_of(finished, model), description(finished, model, options)
    library = f"{plain.library} {metadata.version(plain.library)}" if plain is not None else ""
    if options.form == "safetensors":
        safetensors.write(finished, draft, as_strings(described))
        how = f"loaded into {plain.name} of {library}" if plain else "loaded into the run's own parts"
        return safetensors.runs(finished, model, plain, draft), how
    hub_folder.write(finished, model, options, plain, draft, described)
    if plain is None:
        how = f"{hub_folder.PROGRAM} run by torch"
    elif plain.is_timm:
        how = f"timm.create_model of {library}, from the folder"
    else:
        how = f"loaded into {plain.name} of {library}"
    return hub_folder.runs(finished, model, plain, draft), how


def _beside(draft: Path) -> Path:
    """Return a path, in a folder of its own beside the draft, for a file that only the comparison needs."""
    folder = draft.parent / "pixels"
    folder.mkdir()
    return folder / draft.name


@contextlib.contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """Make a folder beside `out`, and so on the same disk, that is removed at the end.

    The folders above it that were made for it are removed, too, if they are empty. Raises UserError if nothing can be
    written.
    """
    new = [folder for folder in out.absolute().parents if not folder.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with draft_folder(out) as folder:
            yield folder
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from error
    finally:
        for parent in new:
            with contextlib.suppress(OSError):  # it is not empty if an export was written
                parent.rmdir()


def _move(folder: Path, out: Path) -> list[Path]:
    """Move the files of the draft to their places, the one that was asked for last, because it needs the others."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    moved = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name == out.name):
        target = out.parent / path.name
        if target.is_dir() and not target.is_symlink():
            old = folder / ".old"
            target.rename(old)
            path.rename(target)
        else:
            path.replace(target)
        moved.append(target)
    return sorted(file for path in moved for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
