"""The command `export`: the export of a run dir, and its output on the screen."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launcher.errors import Problems
from launcher.export.export import Export, export
from launcher.export.graph import output_dtype
from launcher.export.onnx import check_extra
from launcher.export.sample_images import pictures_for
from launcher.export.target import GRAPHS, Wanted, check_fits, check_target, input_name, output_name
from launcher.export.upload import check_upload, upload
from launcher.inference.finished_run import FinishedRun, read_finished
from launcher.inference.loaded_model import LoadedModel, model_of
from launcher.recipe.loading import recipe_words, types_of_files
from launcher.text import one_line, readable_size
from launcher.training.accelerator import recorded_precision


def export_and_show(run_dir: Path, recipes: Sequence[str] | None, wanted: Wanted, problems: Problems) -> None:
    """Export the model of a finished run, print what was written, and upload it if that is asked for.

    `recipes` are recipe files that define parts of the user's own, and `problems` those of the options. Raises
    UserError with these and all others, before anything is written.
    """
    if wanted.form == "onnx":
        with problems.collected():
            check_extra()
    with problems.collected():
        check_target(wanted.out, wanted.form, wanted.overwrite)
    if wanted.upload_to is not None and wanted.form == "hub":
        with problems.collected():
            check_upload(wanted.upload_to)
    with problems.collected():
        finished = read_finished(run_dir, types_of_files(recipes))
        model = model_of(finished)
        problems.found.extend(check_fits(model, wanted))
        with problems.collected():
            pictures = pictures_for(finished, wanted.check_on)
    problems.raise_if_any()
    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    with screen.status("exporting") as status:
        done = export(finished, model, wanted, pictures, status.update)
    run = f"{shlex.quote(one_line(str(run_dir)))}{recipe_words(recipes)}"
    _show(done, model, wanted, run, _precision(finished))
    if wanted.upload_to is not None:
        with screen.status("uploading"):
            address = upload(done.path, wanted.upload_to, private=wanted.private)
        print(f"uploaded: {address}")


def _show(done: Export, model: LoadedModel, wanted: Wanted, run: str, precision: str | None) -> None:
    opset = f", ONNX opset {done.opset}" if done.opset is not None else ""
    print(f"{one_line(str(done.path))}  {readable_size(done.size)}{opset}")
    if len(done.files) > 1:
        inside = [one_line(str(file.relative_to(done.path.parent))) for file in done.files]
        print(f"  files   {', '.join(inside)}")
    if wanted.form == "hub" and wanted.with_images:
        print("  shows   validation images in report.html; paths of this machine are kept")
    elif wanted.form == "hub":
        print("  shows   no images and no absolute paths of this machine (--with-images keeps both)")
    if wanted.form in GRAPHS:
        side = model.preprocessing.about.image_size
        shape = "uint8 (N, height, width, 3)" if wanted.preprocess else f"float32 (N, 3, {side}, {side})"
        print(f"  input   {input_name(wanted)} {shape}")
        print(f"  output  {output_name(model, wanted)} {str(output_dtype(model))[6:]} (N, {len(model.classes)})")
    if wanted.probabilities and model.kind == "classification" and not model.calibrated:
        why = model.not_calibrated or f"to calibrate: python -m launcher evaluate {run}"
        print(f"  not calibrated; {why}")
    if precision not in (None, "no", "auto"):
        print(f"  computes in float32; the run itself computes in {precision}")
    found = done.difference
    unit = " standard deviations" if model.std is not None else ""
    print(
        f"  checked on {one_line(found.on)}, {done.ran_by}: largest difference {found.largest:.1e}{unit} "
        f"(allowed {wanted.tolerance:g})"
    )
    if found.levels == 0:
        print("  its resized pixels are the model's own")
    elif found.levels is not None:
        print(
            f"  its resized pixels differ by at most {found.levels} of 256 levels from the model's own, which changes "
            f"outputs by at most {found.end_to_end:.1e}{unit}"
        )


def _precision(finished: FinishedRun) -> str | None:
    precision: str = finished.recipe.mixed_precision
    return recorded_precision(finished.rundir.path) if precision == "auto" else precision
